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

/** Errors in a single JSON format: {"error": {"code": 422, "message": "...", "field": "inputs[0]"}}. */
final class Errors {

    private static final String RETRY_AFTER_S = "1";

    /** First words of DJL's messages when the worker was not running or died during a request. */
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

    /** The answer to a request that is not passed to DJL; it closes the connection. */
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
     * The response in the format for clients.
     *
     * <p>The worker's errors arrive in the form of DJL's async mode: {"code": 422, "error": "TEXT"}, where TEXT is the
     * error as JSON. A stopped worker is not the fault of the request: DJL answers 400 if it is not running and 500 if
     * it dies, and both become 503 because the worker is restarted. 507 (worker out of memory) also becomes 503.
     * Netty's 413 has no body.
     */
    static FullHttpResponse shape(FullHttpResponse response) {
        int code = response.status().code();
        if (code < 400) {
            return response;
        }
        String text = response.content().toString(StandardCharsets.UTF_8);
        JsonObject body = parsed(text);
        String fallback = body != null || text.isEmpty() ? response.status().reasonPhrase() : text;
        JsonObject error = read(body == null ? new JsonObject() : body, code, fallback);
        String message = error.get("message").getAsString();
        String type = body == null ? "" : text(body.get("type"), "");
        if ("EngineException".equals(type) || STOPPED.stream().anyMatch(message::startsWith)) {
            code = 503;
            error = object(code, "the worker stopped and is restarting; send the request again", null);
        } else if (code == 507) {
            code = 503;
            error = object(code, "too little memory for this request; send it again, or send a smaller one", null);
        } else if ("IllegalArgumentException".equals(type)) {
            code = 400; // 409 in DJL, for example for an invalid escape in the query
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

    /** The error in a body from this class, the worker, or DJL. */
    private static JsonObject read(JsonObject body, int code, String fallback) {
        JsonElement inner = body.get("error");
        if (inner != null && inner.isJsonObject()) {
            return inner.getAsJsonObject();
        }
        if (inner != null && inner.isJsonPrimitive()) {
            JsonObject error = parsed(inner.getAsString());
            return error != null ? error : object(code, inner.getAsString(), null);
        }
        return object(code, text(body.get("message"), fallback), null);
    }

    private static String text(JsonElement element, String fallback) {
        return element != null && element.isJsonPrimitive() ? element.getAsString() : fallback;
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
