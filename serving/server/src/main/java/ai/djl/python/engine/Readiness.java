package ai.djl.python.engine;

import ai.djl.inference.Predictor;

/** Whether the process of a worker can take requests, which DJL shows to no other package. */
public final class Readiness {

    private Readiness() {}

    /** Whether the predictor's process has loaded its model. */
    public static boolean isReady(Predictor<?, ?> predictor) {
        return !(predictor instanceof PyPredictor) || ((PyPredictor<?, ?>) predictor).process.isReady();
    }
}
