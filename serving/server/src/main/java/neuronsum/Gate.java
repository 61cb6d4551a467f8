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
 * The plugin's entry point, which receives every request before DJL's request handlers.
 *
 * <p>It counts the accepted requests, so that none is lost: on SIGTERM the server refuses new requests and stops when
 * the accepted ones are answered ({@link #drain}). A hanging worker cannot make a client wait longer than the limit
 * ({@link Exchange}), and every error has the same format and a correct status ({@link Errors}).
 */
public final class Gate implements RequestHandler<Void> {

    static final Logger LOGGER = LoggerFactory.getLogger(Gate.class);
    static final AtomicInteger IN_FLIGHT = new AtomicInteger();

    private static final int DRAIN_S = setting("NEURON_SUM_DRAIN_S", 25);
    private static final int REFUSE_S = 2;
    private static final String SHUTTING_DOWN =
            "this server is shutting down; send the request again to another instance";
    private static volatile boolean draining;

    private final Adapters adapters = new Adapters();
    private final Models models = new Models();
    private final Page page = new Page();

    /** Created once, when the server loads its plugins. */
    public Gate() {
        Access.load();
        System.setProperty("io.netty.bootstrap.extensions", "serviceload"); // for Connections, before Netty reads it
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
        // Checked after counting: either this thread sees that the server drains, or the drain sees this request.
        if (draining && (inference || isPing(segments))) {
            Errors.send(ctx, 503, SHUTTING_DOWN);
            return null;
        }
        if (inference && Refusals.refuse(ctx, request, decoder)) {
            return null;
        }
        Unloads.markUnloaded(request, segments);
        if (!page.handle(ctx, request, decoder)
                && !models.handle(ctx, request, decoder, segments)
                && !adapters.handle(ctx, request, decoder, segments)) {
            ctx.fireChannelRead(request.retain());
        }
        return null;
    }

    static int setting(String name, int defaultValue) {
        return Integer.parseInt(Utils.getEnvOrSystemProperty(name, String.valueOf(defaultValue)));
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

    /** The shutdown hook: the virtual machine waits for this thread while all others continue. */
    private static void drain() {
        draining = true;
        LOGGER.info("shutting down: {} requests are unanswered", IN_FLIGHT.get());
        try {
            await(DRAIN_S);
            int refused = IN_FLIGHT.get();
            if (refused > 0) {
                Exchange.refuseAll(SHUTTING_DOWN);
                await(REFUSE_S);
            }
            LOGGER.info("shut down: {} requests were refused, {} not answered", refused, IN_FLIGHT.get());
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
