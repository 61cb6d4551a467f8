package neuronsum;

import ai.djl.util.JsonUtils;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;

import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.DefaultFullHttpRequest;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpHeaderNames;
import io.netty.handler.codec.http.HttpHeaderValues;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.codec.http.QueryStringDecoder;

import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.regex.Pattern;

/**
 * POST /models, restricted to model folders on this machine.
 *
 * <p>DJL loads a model from any URL: it downloads and runs an archive, reads a workflow, or starts `aws s3 sync`. Here
 * the URL must be a path or a file: URL of a folder that contains serving.properties, below one of the model folders.
 */
final class Models {

    /** The folders that models may be loaded from, separated as in a class path. Default: SageMaker's. */
    private static final String ROOTS = System.getProperty("neuronsum.models", "/opt/ml/models:/opt/ml/model");

    private static final String PROPERTIES = "serving.properties";

    /** Files for which DJL takes a folder as a workflow, which loads models from any URL (WorkflowDefinition). */
    private static final List<String> WORKFLOWS = List.of("workflow.json", "workflow.yml", "workflow.yaml");

    private static final Pattern NAME = Pattern.compile("(?!\\.+$)[A-Za-z0-9._-]{1,255}");

    /** Handles a registration and returns true; a valid one is passed on to DJL with the real path of its folder. */
    boolean handle(ChannelHandlerContext ctx, FullHttpRequest request, QueryStringDecoder decoder, String[] path) {
        if (path.length != 2 || !"models".equals(path[1]) || !HttpMethod.POST.equals(request.method())) {
            return false;
        }
        JsonObject model;
        try {
            model = read(request, decoder);
        } catch (JsonParseException | IllegalStateException e) {
            Errors.send(ctx, 400, "the body is not valid JSON; send {\"model_name\": NAME, \"url\": FOLDER}");
            return true;
        }
        String name = text(model, "model_name");
        if (!NAME.matcher(name).matches()) {
            Errors.send(ctx, 400, "model_name must match " + NAME, "model_name");
            return true;
        }
        Path folder = folder(text(model, "url"));
        if (folder == null) {
            Errors.send(ctx, 400, "url must be the path of a folder with " + PROPERTIES + " below " + ROOTS, "url");
            return true;
        }
        JsonObject allowed = new JsonObject();
        allowed.addProperty("model_name", name);
        allowed.addProperty("url", folder.toUri().toString());
        allowed.addProperty("engine", "Python");
        allowed.addProperty("device", "-1");
        if (!text(model, "model_version").isEmpty()) {
            allowed.addProperty("model_version", text(model, "model_version"));
        }
        ctx.fireChannelRead(rewritten(request, allowed));
        return true;
    }

    /** The fields of the body, or of the query if the body is not JSON, as in DJL. */
    private static JsonObject read(FullHttpRequest request, QueryStringDecoder decoder) {
        if (HttpHeaderValues.APPLICATION_JSON.contentEqualsIgnoreCase(HttpUtil.getMimeType(request))) {
            String body = request.content().toString(StandardCharsets.UTF_8);
            JsonElement model = JsonUtils.GSON.fromJson(body, JsonElement.class);
            if (model == null) {
                throw new JsonParseException("empty");
            }
            return model.getAsJsonObject();
        }
        JsonObject model = new JsonObject();
        decoder.parameters().forEach((name, values) -> model.addProperty(name, values.get(0)));
        return model;
    }

    private static String text(JsonObject model, String field) {
        JsonElement value = model.get(field);
        return value != null && value.isJsonPrimitive() ? value.getAsString() : "";
    }

    /** The folder of a URL, or null if it is not a model's folder below one of the roots. */
    private static Path folder(String url) {
        try {
            Path path = url.startsWith("/") ? Path.of(url) : Path.of(URI.create(url));
            Path folder = path.toRealPath();
            boolean below = false;
            for (String root : ROOTS.split(File.pathSeparator)) {
                Path allowed = Path.of(root);
                below |= Files.isDirectory(allowed) && folder.startsWith(allowed.toRealPath());
            }
            boolean workflow = WORKFLOWS.stream().anyMatch(name -> Files.exists(folder.resolve(name)));
            return below && !workflow && Files.isRegularFile(folder.resolve(PROPERTIES)) ? folder : null;
        } catch (IOException | RuntimeException e) { // not a path, not a file: URL, or not an existing folder
            return null;
        }
    }

    private static FullHttpRequest rewritten(FullHttpRequest request, JsonObject model) {
        byte[] body = model.toString().getBytes(StandardCharsets.UTF_8);
        FullHttpRequest other =
                new DefaultFullHttpRequest(
                        request.protocolVersion(), HttpMethod.POST, "/models", Unpooled.wrappedBuffer(body));
        other.headers().set(request.headers()).setInt(HttpHeaderNames.CONTENT_LENGTH, body.length);
        other.headers().set(HttpHeaderNames.CONTENT_TYPE, HttpHeaderValues.APPLICATION_JSON);
        return other;
    }
}
