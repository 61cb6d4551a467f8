package neuronsum;

import ai.djl.inference.streaming.ChunkedBytesSupplier;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.serving.http.DescribeAdapterResponse;
import ai.djl.serving.http.StatusResponse;
import ai.djl.serving.http.list.ListAdaptersResponse;
import ai.djl.serving.models.ModelManager;
import ai.djl.serving.util.NettyUtils;
import ai.djl.serving.wlm.Adapter;
import ai.djl.serving.wlm.Job;
import ai.djl.serving.wlm.ModelInfo;
import ai.djl.serving.wlm.WorkLoadManager;
import ai.djl.serving.wlm.WorkerPool;

import com.google.gson.JsonParser;

import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.netty.handler.codec.http.QueryStringDecoder;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * DJL's adapter routes with correct statuses in async mode.
 *
 * <p>DJL answers 200 to a registration as soon as the request is sent to the worker (AdapterManagementRequestHandler
 * reads a code that an async worker has not returned yet), lists refused adapters, and sends each call to one of a model's
 * workers only. Here the same calls wait for the worker. The workers of a model share a record of the registered adapters
 * (serving/adapters.py), from which one of them also answers GET. The record lacks the adapters in the artifact; the
 * answers to GET contain them, and they can be neither updated nor removed.
 */
final class Adapters {

    /** The folder of the artifact's adapters, in that of the model. */
    private static final String FOLDER = "artifact/adapters";

    /** Seconds to wait for a worker's answer. */
    private static final int LIMIT_S = 60;

    /** The largest number of adapters in an answer. */
    private static final int PAGE = 100;

    /** The same pattern as in neuron_sum/artifact.py. */
    private static final Pattern NAME = Pattern.compile("(?!\\.+$)[A-Za-z0-9._-]{1,64}");

    /**
     * Handles GET and POST [/models/M]/adapters, POST [/models/M]/adapters/A/update, and GET and DELETE
     * [/models/M]/adapters/A; returns false for other routes.
     */
    boolean handle(ChannelHandlerContext ctx, FullHttpRequest request, QueryStringDecoder decoder, String[] path) {
        List<String> route = Arrays.asList(path).subList(Math.min(1, path.length), path.length);
        boolean prefixed = route.size() > 2 && "models".equals(route.get(0)) && "adapters".equals(route.get(2));
        if (prefixed) {
            route = route.subList(2, route.size());
        }
        if (route.isEmpty() || !"adapters".equals(route.get(0))) {
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
        if (!hasSlots(info)) {
            Errors.send(ctx, 400, "this model has no adapter slots; compile with compile.adapters");
            return true;
        }
        String name = route.size() > 1 ? route.get(1) : parameter(decoder, "name");
        String source = parameter(decoder, "src");
        if (name != null && !NAME.matcher(name).matches()) {
            Errors.send(ctx, 400, "an adapter's name must match " + NAME, "name");
            return true;
        }
        if (HttpMethod.GET.equals(request.method()) && route.size() < 3) {
            String asked = route.size() == 1 ? null : name;
            CompletableFuture<Output> known = ask(wlm, info, "list_adapters", name, source);
            answer(ctx, known, "listed", data -> list(ctx, info, asked, data, decoder));
        } else if (HttpMethod.POST.equals(request.method()) && route.size() == 1) {
            if (name == null || source == null || source.isEmpty()) {
                Errors.send(ctx, 400, "name and src are required: POST /models/M/adapters?name=NAME&src=FOLDER");
            } else {
                Adapter<Input, Output> adapter = Adapter.newInstance(info, name, null, source, Map.of());
                CompletableFuture<Output> result = ask(wlm, info, "register_adapter", name, source);
                change(ctx, result, "registered", () -> info.getAdapters().put(name, adapter));
            }
        } else if (HttpMethod.POST.equals(request.method()) && route.size() == 3 && "update".equals(route.get(2))) {
            change(ctx, ask(wlm, info, "update_adapter", name, source), "updated", () -> {});
        } else if (HttpMethod.DELETE.equals(request.method()) && route.size() == 2) {
            CompletableFuture<Output> result = ask(wlm, info, "unregister_adapter", name, source);
            change(ctx, result, "unregistered", () -> info.getAdapters().remove(name));
        } else {
            Errors.send(ctx, 405, "method " + request.method() + " is not allowed; use GET, POST or DELETE");
        }
        return true;
    }

    /** Calls a function of serving/model.py in one of the model's workers. */
    private static CompletableFuture<Output> ask(
            WorkLoadManager wlm, ModelInfo<Input, Output> info, String handler, String name, String source) {
        Input input = new Input();
        input.addProperty("handler", handler);
        input.addProperty("name", name == null ? "" : name);
        input.addProperty("src", source == null ? "" : source);
        return wlm.runJob(new Job<>(info, input));
    }

    /** Sends one adapter, or a page of the names and folders of all adapters, in DJL's format. */
    private static void list(
            ChannelHandlerContext ctx, ModelInfo<Input, Output> info, String name, String data, QueryStringDecoder decoder) {
        Map<String, Adapter<Input, Output>> adapters = compiled(info);
        JsonParser.parseString(data)
                .getAsJsonObject()
                .asMap()
                .forEach(
                        (key, folder) ->
                                adapters.put(key, Adapter.newInstance(info, key, null, folder.getAsString(), Map.of())));
        if (name != null && !adapters.containsKey(name)) {
            Errors.send(ctx, 404, "adapter " + name + " is not registered");
            return;
        }
        if (name != null) {
            NettyUtils.sendJsonResponse(ctx, new DescribeAdapterResponse(adapters.get(name)));
            return;
        }
        List<Adapter<Input, Output>> all = new ArrayList<>(adapters.values());
        int start;
        int end;
        try {
            int limit = number(decoder, "limit", PAGE);
            start = Math.min(number(decoder, "next_page_token", 0), all.size());
            end = Math.min(start + (limit == 0 ? PAGE : Math.min(limit, PAGE)), all.size());
        } catch (NumberFormatException e) {
            Errors.send(ctx, 400, "limit and next_page_token must be integers of at least 0");
            return;
        }
        ListAdaptersResponse page = new ListAdaptersResponse();
        if (end < all.size()) {
            page.setNextPageToken(String.valueOf(end));
        }
        for (Adapter<Input, Output> adapter : all.subList(start, end)) {
            page.addAdapter(adapter.getName(), adapter.getSrc(), adapter.isPreload(), adapter.isPin());
        }
        NettyUtils.sendJsonResponse(ctx, page);
    }

    /** The adapters in the artifact, by name. */
    private static Map<String, Adapter<Input, Output>> compiled(ModelInfo<Input, Output> info) {
        Map<String, Adapter<Input, Output>> adapters = new TreeMap<>();
        Path folder = info.getModelDir() == null ? null : info.getModelDir().resolve(FOLDER);
        if (folder == null || !Files.isDirectory(folder)) {
            return adapters;
        }
        try (Stream<Path> entries = Files.list(folder)) {
            entries.filter(Files::isDirectory)
                    .forEach(
                            entry -> {
                                String name = entry.getFileName().toString();
                                String source = FOLDER + "/" + name;
                                adapters.put(name, Adapter.newInstance(info, name, null, source, Map.of()));
                            });
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
        return adapters;
    }

    private static int number(QueryStringDecoder decoder, String name, int missing) {
        String value = parameter(decoder, name);
        int number = value == null ? missing : Integer.parseInt(value);
        if (number < 0) {
            throw new NumberFormatException();
        }
        return number;
    }

    /** Answers a change; after a success, {@code record} updates DJL's list, which the playground shows. */
    private static void change(
            ChannelHandlerContext ctx, CompletableFuture<Output> result, String action, Runnable record) {
        answer(
                ctx,
                result,
                action,
                data -> {
                    record.run();
                    NettyUtils.sendJsonResponse(ctx, new StatusResponse(action), HttpResponseStatus.OK);
                });
    }

    /** Sends the worker's refusal, or passes on its answer. */
    private static void answer(
            ChannelHandlerContext ctx, CompletableFuture<Output> result, String action, Consumer<String> send) {
        result.thenAcceptAsync(
                        output -> {
                            String text = text((ChunkedBytesSupplier) output.getData());
                            if (output.getCode() < 300) {
                                send.accept(text);
                            } else {
                                Errors.sendBody(ctx, output.getCode(), text);
                            }
                        })
                .exceptionally(
                        failure -> {
                            Gate.LOGGER.error("no answer on whether an adapter was {}", action, failure);
                            Errors.send(ctx, 503, "no answer on whether the adapter was " + action + "; try again");
                            return null;
                        });
    }

    /**
     * The worker's answer, for which this waits at most a minute.
     *
     * <p>The first chunk is read before asking for more, as in InferenceRequestHandler, which pom.xml changes: hasNext
     * is false while the only chunk is being appended, so that getAsBytes loses it.
     */
    private static String text(ChunkedBytesSupplier answer) {
        ByteArrayOutputStream chunks = new ByteArrayOutputStream();
        try {
            do {
                chunks.writeBytes(answer.nextChunk(LIMIT_S, TimeUnit.SECONDS));
            } while (answer.hasNext());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
            throw new IllegalStateException(e);
        }
        if (chunks.size() == 0) {
            throw new IllegalStateException("an empty answer");
        }
        return chunks.toString(StandardCharsets.UTF_8);
    }

    static boolean hasSlots(ModelInfo<Input, Output> info) {
        Properties properties = info.getProperties(); // null while the model is being loaded
        return properties != null && Boolean.parseBoolean(properties.getProperty("option.enable_lora", "false"));
    }

    private static String parameter(QueryStringDecoder decoder, String name) {
        List<String> values = decoder.parameters().get(name);
        return values == null ? null : values.get(0);
    }
}
