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
 * Requests that never reach the worker as they were meant, refused before DJL parses them.
 *
 * <p>DJL decodes forms, and 500 is what a body that is none gets, 204 an empty one (RequestParser); it puts the query
 * before the body, and takes `adapter` in it for one of its own list, else 424 (ModelInfo.ModelThread.run); and it can
 * answer 200 with nothing but a token (InferenceRequestHandler.runJob).
 */
final class Refusals {

    private static final List<String> LATER = List.of("x-synchronous", "x-starting-token");

    /** Characters of a body; the worker counts them again, but reading a long one there holds up all other requests. */
    private static final int MOST_CHARACTERS = Gate.setting("NEURON_SUM_MAX_CHARACTERS", Integer.MAX_VALUE);

    private static final int ESCAPE = 6;

    private Refusals() {}

    /** Whether this request for an answer was refused. */
    static boolean refuse(ChannelHandlerContext ctx, FullHttpRequest request, QueryStringDecoder decoder) {
        CharSequence mime = HttpUtil.getMimeType(request);
        String type = mime == null ? "" : mime.toString().trim().toLowerCase(Locale.ROOT);
        if (type.startsWith("multipart/") || "application/x-www-form-urlencoded".equals(type)) {
            String allowed = " is not one of application/json, application/jsonlines, text/plain";
            Errors.send(ctx, 415, "Content-Type '" + type + "'" + allowed, "Content-Type");
        } else if (decoder.parameters().containsKey("adapter")) {
            String ways = "parameters.adapter in the body, or X-Amzn-SageMaker-Adapter-Identifier";
            Errors.send(ctx, 400, "the query chooses no adapter: " + ways, "adapter");
        } else if (decoder.parameters().containsKey("data")) {
            Errors.send(ctx, 400, "the query holds no data: send it as the body", "data");
        } else if (request.content().readableBytes() > MOST_CHARACTERS && characters(request.content()) > MOST_CHARACTERS) {
            Errors.send(ctx, 413, "the body has more than " + MOST_CHARACTERS + " characters", "inputs");
        } else if (later(request.headers())) {
            Errors.send(ctx, 400, "answers are not kept for later: leave out " + String.join(" and ", LATER), null);
        } else {
            return false;
        }
        return true;
    }

    /** The characters of UTF-8 text, an escape of JSON counted as one, as serving/schema.py counts them. */
    private static int characters(ByteBuf body) {
        Counter counter = new Counter();
        body.forEachByte(counter);
        return counter.characters;
    }

    private static final class Counter implements ByteProcessor {

        private int characters;
        private boolean escaped;

        @Override
        public boolean process(byte part) {
            if ((part & 0xC0) != 0x80) { // not the continuation of a character
                characters++;
            }
            if (escaped && part == 'u') {
                characters -= ESCAPE - 1;
            }
            escaped = part == '\\';
            return true;
        }
    }

    private static boolean later(HttpHeaders headers) {
        String attributes = headers.get("X-Amzn-SageMaker-Custom-Attributes", "").toLowerCase(Locale.ROOT);
        return LATER.stream().anyMatch(name -> headers.contains(name) || attributes.contains(name));
    }
}
