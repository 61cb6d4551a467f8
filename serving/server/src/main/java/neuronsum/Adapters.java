package neuronsum;

import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.ndarray.BytesSupplier;
import ai.djl.serving.http.StatusResponse;
import ai.djl.serving.models.ModelManager;
import ai.djl.serving.util.NettyUtils;
import ai.djl.serving.wlm.Adapter;
import ai.djl.serving.wlm.ModelInfo;
import ai.djl.serving.wlm.WorkLoadManager;
import ai.djl.serving.wlm.WorkerPool;

import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.netty.handler.codec.http.QueryStringDecoder;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;

/**
 * DJL's adapter routes, telling the truth in async mode.
 *
 * <p>DJL answers 200 to a registration as soon as the worker was asked (AdapterManagementRequestHandler reads a code
 * that an async worker has not given yet), and lists an adapter that was refused. Here the same calls wait for the
 * worker. Listing and describing stay DJL's.
 */
final class Adapters {

    /** Whether this was a route of ours; POST [/models/M]/adapters[/A/update] and DELETE [/models/M]/adapters/A. */
    boolean handle(ChannelHandlerContext ctx, FullHttpRequest request, QueryStringDecoder decoder, String[] path) {
        List<String> route = Arrays.asList(path).subList(Math.min(1, path.length), path.length);
        boolean prefixed = route.size() > 2 && "models".equals(route.get(0)) && "adapters".equals(route.get(2));
        if (prefixed) {
            route = route.subList(2, route.size());
        }
        if (route.isEmpty() || !"adapters".equals(route.get(0)) || HttpMethod.GET.equals(request.method())) {
            return false;
        }
        String model = prefixed ? path[2] : ModelManager.getInstance().getSingleStartupWorkflow().orElse("");
        WorkLoadManager wlm = ModelManager.getInstance().getWorkLoadManager();
        WorkerPool<Input, Output> pool = wlm.getWorkerPoolById(model);
        if (pool == null || !(pool.getWpc() instanceof ModelInfo)) {
            Errors.send(ctx, 404, "no model " + model);
            return true;
        }
        ModelInfo<Input, Output> info = (ModelInfo<Input, Output>) pool.getWpc();
        if (!Boolean.parseBoolean(info.getProperties().getProperty("option.enable_lora", "false"))) {
            Errors.send(ctx, 400, "this model has no adapter slots: compile with compile.adapters");
            return true;
        }
        String name = route.size() > 1 ? route.get(1) : parameter(decoder, "name");
        String source = parameter(decoder, "src");
        Adapter<Input, Output> known = name == null ? null : info.getAdapter(name);
        if (HttpMethod.POST.equals(request.method()) && route.size() == 1) {
            if (name == null || source == null) {
                Errors.send(ctx, 400, "name and src are required: POST /models/M/adapters?name=NAME&src=FOLDER");
            } else {
                Adapter<Input, Output> adapter = Adapter.newInstance(info, name, null, source, options(decoder));
                answer(ctx, adapter.register(wlm), "registered", () -> info.registerAdapter(adapter));
            }
        } else if (known == null) {
            Errors.send(ctx, 404, "no adapter " + name + " was registered here");
        } else if (HttpMethod.POST.equals(request.method()) && route.size() == 3) {
            String now = source == null ? known.getSrc() : source;
            Adapter<Input, Output> adapter = Adapter.newInstance(info, name, null, now, options(decoder));
            answer(ctx, adapter.update(wlm), "updated", () -> info.updateAdapter(adapter));
        } else if (HttpMethod.DELETE.equals(request.method())) {
            answer(ctx, Adapter.unregister(known, info, wlm), "unregistered", () -> info.unregisterAdapter(name));
        } else {
            Errors.send(ctx, 405, "GET, POST or DELETE");
        }
        return true;
    }

    private static void answer(
            ChannelHandlerContext ctx, CompletableFuture<Output> asked, String done, Runnable record) {
        asked.whenCompleteAsync(
                (output, failure) -> {
                    if (failure != null) {
                        NettyUtils.sendError(ctx, HttpResponseStatus.SERVICE_UNAVAILABLE, failure);
                        return;
                    }
                    BytesSupplier data = output.getData();
                    String body = new String(data.getAsBytes(), StandardCharsets.UTF_8); // waits for the worker
                    if (output.getCode() >= 300) {
                        Errors.sendBody(ctx, output.getCode(), body);
                        return;
                    }
                    record.run();
                    NettyUtils.sendJsonResponse(ctx, new StatusResponse(done), HttpResponseStatus.OK);
                });
    }

    private static String parameter(QueryStringDecoder decoder, String name) {
        List<String> values = decoder.parameters().get(name);
        return values == null ? null : values.get(0);
    }

    private static Map<String, String> options(QueryStringDecoder decoder) {
        Map<String, String> options = new ConcurrentHashMap<>();
        decoder.parameters().forEach((key, values) -> options.put(key, values.get(0)));
        return options;
    }
}
