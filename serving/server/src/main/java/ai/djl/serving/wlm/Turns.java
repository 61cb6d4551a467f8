package ai.djl.serving.wlm;

import ai.djl.python.engine.Readiness;
import ai.djl.serving.wlm.util.WorkerJob;

import java.util.List;

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

    /** Takes the next requests as soon as the process can answer them, or if nobody else has taken them. */
    static <I, O> List<Job<I, O>> take(WorkerThread<I, O> thread, BatchAggregator<I, O> aggregator)
            throws InterruptedException {
        while (true) {
            while (thread.isRunning() && !isReady(thread.getThreadType()) && !isLate(aggregator.jobQueue.peek())) {
                Thread.sleep(PAUSE_MS);
            }
            List<Job<I, O>> jobs = aggregator.getRequest();
            // The process may have died while its thread waited for a request.
            if (jobs.isEmpty()
                    || !thread.isRunning()
                    || isReady(thread.getThreadType())
                    || isLate(aggregator.wjs.get(0))) {
                return jobs;
            }
            aggregator.jobQueue.addAll(aggregator.wjs);
            aggregator.wjs.clear();
        }
    }

    private static boolean isLate(WorkerJob<?, ?> job) {
        return job != null && job.getJob().getWaitingMicroSeconds() > PATIENCE_MICROS;
    }

    private static boolean isReady(WorkerPoolConfig.ThreadConfig<?, ?> config) {
        return !(config instanceof ModelInfo.ModelThread)
                || Readiness.isReady(((ModelInfo<?, ?>.ModelThread) config).getPredictor());
    }
}
