package neuronsum;

import ai.djl.serving.plugins.RequestHandler;
import ai.djl.util.Utils;

import io.netty.channel.ChannelHandlerContext;
import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.QueryStringDecoder;

import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * What DJL Serving lacks around its own request handlers, as one plugin.
 *
 * <p>Every request passes here first. It counts what was accepted and lets none be lost: on SIGTERM the server refuses
 * new work and stops when what it holds is answered ({@link #drain}); a worker that hangs cannot hold a client longer
 * than the limit ({@link Exchange}); and every error leaves in one shape with an honest status.
 */
public final class Gate implements RequestHandler<Void> {

    static final Logger LOGGER = LoggerFactory.getLogger(Gate.class);
    static final AtomicInteger IN_FLIGHT = new AtomicInteger();

    private static final int DRAIN_S = setting("NEURON_SUM_DRAIN_S", 25);
    private static final int REFUSE_S = 2;
    private static final String SHUTTING_DOWN =
            "this server is shutting down; send the request again, to another instance";
    private static volatile boolean draining;

    private final Adapters adapters = new Adapters();
    private final Models models = new Models();
    private final Page page = new Page();

    /** Made once, when the server loads its plugins. */
    public Gate() {
        System.setProperty("io.netty.bootstrap.extensions", "serviceload"); // for Connections, before Netty asks
        Runtime.getRuntime().addShutdownHook(new Thread(Gate::drain, "drain"));
    }

    /** {@inheritDoc} */
    @Override
    public boolean acceptInboundMessage(Object message) {
        return message instanceof FullHttpRequest;
    }

    /** {@inheritDoc} */
    @Override
    public Void handleRequest(
            ChannelHandlerContext ctx, FullHttpRequest request, QueryStringDecoder decoder, String[] segments) {
        boolean inference = isInference(segments);
        if (inference) {
            ctx.pipeline().get(Exchange.class).begin(ctx, Workers.failures(request, decoder, segments));
        }
        // Asked after it was counted: either this sees that the server drains, or the drain sees this request.
        if (draining && (inference || isPing(segments))) {
            Errors.send(ctx, 503, SHUTTING_DOWN);
            return null;
        }
        if (inference && Refusals.refuse(ctx, request, decoder)) {
            return null;
        }
        Unloads.see(request, segments);
        if (!page.handle(ctx, request, decoder)
                && !models.handle(ctx, request, decoder, segments)
                && !adapters.handle(ctx, request, decoder, segments)) {
            ctx.fireChannelRead(request.retain());
        }
        return null;
    }

    static int setting(String name, int otherwise) {
        return Integer.parseInt(Utils.getEnvOrSystemProperty(name, String.valueOf(otherwise)));
    }

    private static boolean isPing(String[] segments) {
        return segments.length > 1 && "ping".equals(segments[1]);
    }

    private static boolean isInference(String[] segments) {
        return segments.length > 1
                && ("invocations".equals(segments[1])
                        || "predictions".equals(segments[1])
                        || "v1".equals(segments[1])
                        || "models".equals(segments[1]) && "invoke".equals(segments[segments.length - 1]));
    }

    /** The virtual machine waits for this thread when it is told to stop, while all others go on. */
    private static void drain() {
        draining = true;
        LOGGER.info("shutting down: {} requests are still to be answered", IN_FLIGHT.get());
        try {
            await(DRAIN_S);
            int left = IN_FLIGHT.get();
            if (left > 0) {
                Exchange.refuseAll(SHUTTING_DOWN);
                await(REFUSE_S);
            }
            LOGGER.info("shut down: {} requests were refused, {} not answered", left, IN_FLIGHT.get());
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private static void await(int seconds) throws InterruptedException {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        while (IN_FLIGHT.get() > 0 && System.nanoTime() < end) {
            Thread.sleep(20);
        }
    }
}
