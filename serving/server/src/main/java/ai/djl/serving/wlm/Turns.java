package ai.djl.serving.wlm;

import ai.djl.python.engine.Readiness;
import ai.djl.serving.wlm.util.WorkerJob;

/**
 * Keeps requests away from a worker whose process is starting, as long as another worker takes them.
 *
 * <p>All worker threads of a model take requests from one queue and pass them on at once. The thread of a dead process
 * would refuse its share of them (503), although the others could answer. Called by DJL's WorkerThread, which pom.xml
 * changes.
 */
final class Turns {

    private static final long PAUSE_MS = 20;

    /** A request that has waited this long is refused, because no other worker has taken it. */
    private static final long PATIENCE_MICROS = 250_000;

    private Turns() {}

    /** Returns when the thread should take a request. */
    static void await(WorkerThread<?, ?> thread, BatchAggregator<?, ?> aggregator) throws InterruptedException {
        while (thread.isRunning() && !isReady(thread.getThreadType())) {
            WorkerJob<?, ?> next = aggregator.jobQueue.peek();
            if (next != null && next.getJob().getWaitingMicroSeconds() > PATIENCE_MICROS) {
                return;
            }
            Thread.sleep(PAUSE_MS);
        }
    }

    private static boolean isReady(WorkerPoolConfig.ThreadConfig<?, ?> config) {
        return !(config instanceof ModelInfo.ModelThread)
                || Readiness.isReady(((ModelInfo<?, ?>.ModelThread) config).getPredictor());
    }
}
