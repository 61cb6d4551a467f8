package neuronsum;

import ai.djl.serving.util.NettyUtils;
import ai.djl.util.JsonUtils;

import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;

import io.netty.buffer.ByteBuf;
import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.DefaultFullHttpResponse;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpHeaderNames;
import io.netty.handler.codec.http.HttpHeaderValues;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.netty.handler.codec.http.HttpVersion;

import java.nio.charset.StandardCharsets;
import java.util.List;

/** One shape for every error: {"error": {"code": 422, "message": "...", "field": "inputs[0]"}}. */
final class Errors {

    private static final String RETRY_AFTER_S = "1";

    /** How DJL's messages begin where the worker was gone when it was asked, or died over a request. */
    private static final List<String> STOPPED = List.of("Backend Python process", "Inference Engine Failure");

    private Errors() {}

    static void send(ChannelHandlerContext ctx, int code, String message) {
        send(ctx, code, message, null);
    }

    static void send(ChannelHandlerContext ctx, int code, String message, String field) {
        sendBody(ctx, code, body(object(code, message, field)).toString());
    }

    static void sendBody(ChannelHandlerContext ctx, int code, String body) {
        NettyUtils.sendHttpResponse(ctx, response(code, body), true);
    }

    /** The answer to a request that DJL never gets; the connection ends with it. */
    static FullHttpResponse rejection(int code, String message) {
        FullHttpResponse response = response(code, body(object(code, message, null)).toString());
        response.headers()
                .setInt(HttpHeaderNames.CONTENT_LENGTH, response.content().readableBytes())
                .set(HttpHeaderNames.CONNECTION, HttpHeaderValues.CLOSE);
        if (code == 401) {
            response.headers().set(HttpHeaderNames.WWW_AUTHENTICATE, "Bearer");
        }
        return response;
    }

    private static FullHttpResponse response(int code, String body) {
        FullHttpResponse response =
                new DefaultFullHttpResponse(HttpVersion.HTTP_1_1, HttpResponseStatus.valueOf(code));
        response.content().writeBytes(body.getBytes(StandardCharsets.UTF_8));
        response.headers().set(HttpHeaderNames.CONTENT_TYPE, "application/json");
        return response;
    }

    /**
     * The response as it leaves.
     *
     * <p>The worker's own errors arrive as DJL writes them in async mode: {"code": 422, "error": "TEXT"}, with ours as
     * TEXT. A worker that stopped is no fault of the request: DJL says 400 for one that is gone and 500 for one that
     * dies, and both become 503, for the worker is started again. So does 507, the worker out of memory. Netty's own
     * 413 has no body at all.
     */
    static FullHttpResponse shape(FullHttpResponse response) {
        int code = response.status().code();
        if (code < 400) {
            return response;
        }
        String text = response.content().toString(StandardCharsets.UTF_8);
        JsonObject body = parsed(text);
        String otherwise = body != null || text.isEmpty() ? response.status().reasonPhrase() : text;
        JsonObject error = read(body == null ? new JsonObject() : body, code, otherwise);
        String message = error.get("message").getAsString();
        String type = body == null ? "" : text(body.get("type"), "");
        if ("EngineException".equals(type) || STOPPED.stream().anyMatch(message::startsWith)) {
            code = 503;
            error = object(code, "the worker stopped and is being started again; send the request again", null);
        } else if (code == 507) {
            code = 503;
            error = object(code, "too little memory for this request; send the request again, or a smaller one", null);
        } else if ("IllegalArgumentException".equals(type)) {
            code = 400; // 409 in DJL, as for an escape in the query that is none
        } else if (code == 413 && text.isEmpty()) {
            error = object(code, "the body is larger than serve.max_body_bytes", null);
        }
        error.addProperty("code", code);
        ByteBuf content = Unpooled.copiedBuffer(body(error).toString(), StandardCharsets.UTF_8);
        FullHttpResponse shaped = response.replace(content);
        response.release();
        shaped.setStatus(HttpResponseStatus.valueOf(code));
        shaped.headers().set(HttpHeaderNames.CONTENT_TYPE, "application/json");
        shaped.headers().setInt(HttpHeaderNames.CONTENT_LENGTH, content.readableBytes());
        if (code == 503 && !shaped.headers().contains(HttpHeaderNames.RETRY_AFTER)) {
            shaped.headers().set(HttpHeaderNames.RETRY_AFTER, RETRY_AFTER_S);
        }
        return shaped;
    }

    private static JsonObject body(JsonObject error) {
        JsonObject body = new JsonObject();
        body.add("error", error);
        return body;
    }

    private static JsonObject object(int code, String message, String field) {
        JsonObject error = new JsonObject();
        error.addProperty("code", code);
        error.addProperty("message", message);
        error.add("field", field == null ? JsonNull.INSTANCE : new JsonPrimitive(field));
        return error;
    }

    /** What the body says, whoever wrote it: this class, our worker, or DJL. */
    private static JsonObject read(JsonObject body, int code, String otherwise) {
        JsonElement inner = body.get("error");
        if (inner != null && inner.isJsonObject()) {
            return inner.getAsJsonObject();
        }
        if (inner != null && inner.isJsonPrimitive()) {
            JsonObject ours = parsed(inner.getAsString());
            return ours != null ? ours : object(code, inner.getAsString(), null);
        }
        return object(code, text(body.get("message"), otherwise), null);
    }

    private static String text(JsonElement element, String otherwise) {
        return element != null && element.isJsonPrimitive() ? element.getAsString() : otherwise;
    }

    private static JsonObject parsed(String text) {
        try {
            JsonElement element = JsonUtils.GSON.fromJson(text, JsonElement.class);
            return element != null && element.isJsonObject() ? element.getAsJsonObject() : null;
        } catch (JsonParseException e) {
            return null;
        }
    }
}
