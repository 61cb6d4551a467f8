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

/**
 * How often workers failed in a row.
 *
 * <p>DJL counts every failure of a worker since the server started and calls the model failed for good once they are
 * more than retry_threshold, so that a server dies of a few crashes in a month. Here an answer starts its model's count
 * anew: a worker that dies once and comes back is forgiven, one that cannot come back fails at once, and /ping says so.
 */
final class Workers {

    private static final String FAILED = "failed";

    private Workers() {}

    /** The failures so far of the model that a request goes to; nothing where there are none, or no worker is asked. */
    static Map<Model, Integer> failures(FullHttpRequest request, QueryStringDecoder decoder, String[] path) {
        Map<Model, Integer> failures = new HashMap<>();
        if (HttpMethod.POST.equals(request.method())) {
            Endpoint endpoint = ModelManager.getInstance().getEndpoints().get(name(request, decoder, path));
            // Which of several versions answers is not known, so that none of them is forgiven.
            if (endpoint != null && endpoint.getWorkflows().size() == 1) {
                for (Model model : models(endpoint.getWorkflows().get(0))) {
                    failures.put(model, model.intProperty(FAILED, 0));
                }
            }
            failures.values().removeIf(count -> count == 0);
        }
        return failures;
    }

    /** A request that came after these failures was answered. If there are more now, its worker is gone already. */
    static void answered(Map<Model, Integer> failures) {
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

    /** As InferenceRequestHandler finds it. */
    private static String name(FullHttpRequest request, QueryStringDecoder decoder, String[] path) {
        if (path.length > 2 && ("models".equals(path[1]) || "predictions".equals(path[1]))) {
            return path[2];
        }
        String name = NettyUtils.getParameter(decoder, "model_name", request.headers().get("model_name"));
        return name != null ? name : ModelManager.getInstance().getSingleStartupWorkflow().orElse("");
    }
}
