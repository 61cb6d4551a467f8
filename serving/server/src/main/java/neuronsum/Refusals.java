package neuronsum;

import io.netty.buffer.ByteBuf;
import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpHeaders;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.codec.http.QueryStringDecoder;
import io.netty.util.ByteProcessor;

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

    /** Maximum characters of a body. The worker also checks it, but reading a long body there delays other requests. */
    private static final int MAX_CHARACTERS = Gate.setting("NEURON_SUM_MAX_CHARACTERS", Integer.MAX_VALUE);

    private static final int ESCAPE_LENGTH = 6;

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
        } else if (isTooLong(request.content(), !type.startsWith("text/"))) {
            Errors.send(ctx, 413, "the body has more than " + MAX_CHARACTERS + " characters", "inputs");
        } else if (isAsynchronous(request.headers())) {
            String headers = String.join(" and ", ASYNC_HEADERS);
            Errors.send(ctx, 400, "asynchronous answers are not supported; omit " + headers, null);
        } else {
            return false;
        }
        return true;
    }

    private static boolean isTooLong(ByteBuf body, boolean json) {
        int bytes = body.readableBytes();
        if (bytes <= MAX_CHARACTERS) {
            return false;
        }
        CharacterCounter counter = new CharacterCounter(json);
        body.forEachByte(counter);
        return Math.max(counter.characters, bytes / ESCAPE_LENGTH) > MAX_CHARACTERS;
    }

    /** Counts the characters of UTF-8 text, a JSON escape as one, in the same way as serving/limits.py. */
    private static final class CharacterCounter implements ByteProcessor {

        private final boolean json;
        private int characters;
        private boolean escaped;

        CharacterCounter(boolean json) {
            this.json = json;
        }

        @Override
        public boolean process(byte part) {
            if ((part & 0xC0) != 0x80) { // not a continuation byte
                characters++;
            }
            if (json && escaped && part == 'u') {
                characters -= ESCAPE_LENGTH - 1;
            }
            escaped = part == '\\' && !escaped;
            return true;
        }
    }

    private static boolean isAsynchronous(HttpHeaders headers) {
        String attributes = headers.get("X-Amzn-SageMaker-Custom-Attributes", "").toLowerCase(Locale.ROOT);
        return ASYNC_HEADERS.stream().anyMatch(name -> headers.contains(name) || attributes.contains(name));
    }
}
