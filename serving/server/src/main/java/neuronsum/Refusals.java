package neuronsum;

import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpHeaders;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.codec.http.QueryStringDecoder;

import java.util.List;
import java.util.Locale;

/**
 * Refusals of requests that DJL would change before they reach the worker.
 *
 * <p>DJL decodes forms, and answers 500 to an invalid form and 204 to an empty one (RequestParser). It puts the query
 * before the body, and answers 424 to an `adapter` in the query that is not in DJL's list (ModelInfo.ModelThread.run).
 * It can also answer 200 with only a token (InferenceRequestHandler.runJob).
 */
final class Refusals {

    private static final List<String> ASYNC_HEADERS = List.of("x-synchronous", "x-starting-token");

    private Refusals() {}

    /** Refuses an unsupported inference request and returns true; returns false if the request is supported. */
    static boolean refuse(ChannelHandlerContext ctx, FullHttpRequest request, QueryStringDecoder decoder) {
        CharSequence mime = HttpUtil.getMimeType(request);
        String type = mime == null ? "" : mime.toString().trim().toLowerCase(Locale.ROOT);
        if (type.startsWith("multipart/") || "application/x-www-form-urlencoded".equals(type)) {
            String allowed = " is not one of application/json, application/jsonlines, text/plain";
            Errors.send(ctx, 415, "Content-Type '" + type + "'" + allowed, "Content-Type");
        } else if (decoder.parameters().containsKey("adapter")) {
            String ways = "parameters.adapter in the body, or X-Amzn-SageMaker-Adapter-Identifier";
            Errors.send(ctx, 400, "an adapter cannot be chosen in the query; use " + ways, "adapter");
        } else if (decoder.parameters().containsKey("data")) {
            Errors.send(ctx, 400, "data cannot be sent in the query; send it as the body", "data");
        } else if (isAsynchronous(request.headers())) {
            String headers = String.join(" and ", ASYNC_HEADERS);
            Errors.send(ctx, 400, "asynchronous answers are not supported; omit " + headers, null);
        } else {
            return false;
        }
        return true;
    }

    private static boolean isAsynchronous(HttpHeaders headers) {
        String attributes = headers.get("X-Amzn-SageMaker-Custom-Attributes", "").toLowerCase(Locale.ROOT);
        return ASYNC_HEADERS.stream().anyMatch(name -> headers.contains(name) || attributes.contains(name));
    }
}
