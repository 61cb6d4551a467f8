package neuronsum;

import ai.djl.Model;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.serving.models.Endpoint;
import ai.djl.serving.models.ModelManager;
import ai.djl.serving.util.NettyUtils;
import ai.djl.serving.wlm.ModelInfo;
import ai.djl.serving.wlm.WorkerPoolConfig;
import ai.djl.serving.workflow.Workflow;

import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.QueryStringDecoder;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

/**
 * The restarts of workers, and the number of consecutive failures of each model's workers.
 *
 * <p>DJL counts every failure of a worker since the server started and marks the model as failed permanently if the
 * count exceeds retry_threshold, so that a few crashes in a month stop a server. Here an answer resets its model's
 * count: as many failures in a row as there are workers are tolerated. If a worker cannot restart, its model fails
 * immediately, although other workers could answer, and /ping reports it: the server has lost a part of its capacity
 * permanently.
 */
public final class Workers {

    private static final String FAILED = "failed";

    /** A number of failures that exceeds every retry_threshold and is never reset. */
    private static final int FINAL = 1_000_000;

    private Workers() {}

    /**
     * Starts a worker's process again; called by DJL's PyProcess, which pom.xml changes.
     *
     * <p>PyProcess cancels the future while the start fails, so that an action after it would not run.
     */
    public static CompletableFuture<Void> restart(Model model, Runnable start) {
        return CompletableFuture.runAsync(
                () -> {
                    try {
                        start.run();
                    } catch (RuntimeException failure) {
                        Gate.LOGGER.error("a worker of {} cannot restart", model.getName(), failure);
                        model.setProperty(FAILED, String.valueOf(FINAL));
                        throw failure;
                    }
                });
    }

    /** The current failures of the model that a request is for; empty without failures or without an inference. */
    static Map<Model, Integer> failures(FullHttpRequest request, QueryStringDecoder decoder, String[] path) {
        Map<Model, Integer> failures = new HashMap<>();
        if (HttpMethod.POST.equals(request.method())) {
            Endpoint endpoint = ModelManager.getInstance().getEndpoints().get(name(request, decoder, path));
            // With several versions, the one that answers is unknown, so that no count is reset.
            if (endpoint != null && endpoint.getWorkflows().size() == 1) {
                for (Model model : models(endpoint.getWorkflows().get(0))) {
                    failures.put(model, model.intProperty(FAILED, 0));
                }
            }
            failures.values().removeIf(count -> count == 0 || count >= FINAL);
        }
        return failures;
    }

    /** Resets the failures after an answer. If there are more failures now, the worker has already died. */
    static void resetFailures(Map<Model, Integer> failures) {
        failures.forEach(
                (model, count) -> {
                    if (model.intProperty(FAILED, 0) == count) {
                        model.setProperty(FAILED, "0");
                    }
                });
    }

    static List<Model> models(Workflow workflow) {
        List<Model> models = new ArrayList<>();
        for (WorkerPoolConfig<Input, Output> pool : workflow.getWpcs()) {
            if (pool instanceof ModelInfo) {
                models.addAll(((ModelInfo<Input, Output>) pool).getModels().values());
            }
        }
        return models;
    }

    /** The model's name, determined as in InferenceRequestHandler. */
    private static String name(FullHttpRequest request, QueryStringDecoder decoder, String[] path) {
        if (path.length > 2 && ("models".equals(path[1]) || "predictions".equals(path[1]))) {
            return path[2];
        }
        String name = NettyUtils.getParameter(decoder, "model_name", request.headers().get("model_name"));
        return name != null ? name : ModelManager.getInstance().getSingleStartupWorkflow().orElse("");
    }
}
