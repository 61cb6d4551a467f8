package neuronsum;

import ai.djl.serving.util.NettyUtils;

import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.DefaultFullHttpResponse;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpHeaderNames;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.netty.handler.codec.http.HttpVersion;
import io.netty.handler.codec.http.QueryStringDecoder;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** The playground, one file that -Dneuronsum.page names: GET / and GET /playground. Without the property, nothing. */
final class Page {

    private static final String FILE = System.getProperty("neuronsum.page");

    /** The page brings its own script and style, and talks to this server alone. */
    private static final String POLICY =
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
                    + "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

    private final byte[] content = FILE == null ? null : read(Path.of(FILE));

    /** Whether this was a request for the page. */
    boolean handle(ChannelHandlerContext ctx, FullHttpRequest request, QueryStringDecoder decoder) {
        String path = decoder.path();
        boolean ours = "/".equals(path) || "/playground".equals(path);
        if (content == null || !ours || !HttpMethod.GET.equals(request.method())) {
            return false;
        }
        FullHttpResponse response =
                new DefaultFullHttpResponse(
                        HttpVersion.HTTP_1_1, HttpResponseStatus.OK, Unpooled.wrappedBuffer(content));
        response.headers()
                .set(HttpHeaderNames.CONTENT_TYPE, "text/html; charset=utf-8")
                .set(HttpHeaderNames.CONTENT_SECURITY_POLICY, POLICY)
                .set("X-Content-Type-Options", "nosniff")
                .set("Referrer-Policy", "no-referrer");
        NettyUtils.sendHttpResponse(ctx, response, true);
        return true;
    }

    private static byte[] read(Path file) {
        try {
            return Files.readAllBytes(file);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
