package neuronsum;

import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.serving.models.ModelManager;
import ai.djl.serving.util.NettyUtils;
import ai.djl.serving.wlm.ModelInfo;
import ai.djl.serving.wlm.WorkerPoolConfig;
import ai.djl.serving.workflow.Workflow;

import com.google.gson.GsonBuilder;

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
import java.util.Map;
import java.util.Set;
import java.util.SortedSet;
import java.util.TreeMap;
import java.util.TreeSet;

/**
 * The playground: the file in -Dneuronsum.page at GET / and GET /playground, and its list of models and adapters at
 * GET /playground/models. Without the property, these routes do not exist.
 */
final class Page {

    private static final String FILE = System.getProperty("neuronsum.page");

    /** The content security policy: the page has inline script and style, and connects only to this server. */
    private static final String POLICY =
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
                    + "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

    private final byte[] content = FILE == null ? null : read(Path.of(FILE));

    /** Handles a request for the page and returns true; returns false for other requests. */
    boolean handle(ChannelHandlerContext ctx, FullHttpRequest request, QueryStringDecoder decoder) {
        String path = decoder.path();
        if (content == null || !HttpMethod.GET.equals(request.method())) {
            return false;
        }
        if ("/playground/models".equals(path)) {
            NettyUtils.sendJsonResponse(ctx, new GsonBuilder().serializeNulls().create().toJson(models()));
            return true;
        }
        if (!"/".equals(path) && !"/playground".equals(path)) {
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

    /** The registered adapters by model name; null for a model without adapter slots. */
    private static Map<String, SortedSet<String>> models() {
        Map<String, SortedSet<String>> names = new TreeMap<>();
        ModelManager.getInstance().getEndpoints().forEach((name, endpoint) -> {
            names.put(name, null);
            for (Workflow workflow : endpoint.getWorkflows()) {
                for (WorkerPoolConfig<Input, Output> pool : workflow.getWpcs()) {
                    if (pool instanceof ModelInfo && Adapters.hasSlots((ModelInfo<Input, Output>) pool)) {
                        Set<String> adapters = ((ModelInfo<Input, Output>) pool).getAdapters().keySet();
                        names.merge(name, new TreeSet<>(adapters), (first, second) -> first);
                    }
                }
            }
        });
        return names;
    }

    private static byte[] read(Path file) {
        try {
            return Files.readAllBytes(file);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
