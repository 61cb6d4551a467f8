package neuronsum;

import ai.djl.Model;
import ai.djl.serving.models.ModelManager;
import ai.djl.serving.wlm.ModelInfo;
import ai.djl.serving.wlm.WorkerPoolConfig;

/**
 * How often workers failed in a row.
 *
 * <p>DJL counts every failure of a worker since the server started and calls the model failed for good once they are
 * more than retry_threshold, so that a server dies of a few crashes in a month. Here an answer starts the count anew:
 * a worker that dies once and comes back is forgiven, one that cannot come back fails at once, and /ping says so.
 */
final class Workers {

    private static final String FAILED = "failed";

    private Workers() {}

    static void answered() {
        for (WorkerPoolConfig<?, ?> pool : ModelManager.getInstance().getWpcs()) {
            if (pool instanceof ModelInfo) {
                for (Model model : ((ModelInfo<?, ?>) pool).getModels().values()) {
                    if (model.intProperty(FAILED, 0) > 0) {
                        model.setProperty(FAILED, "0");
                    }
                }
            }
        }
    }
}
