package neuronsum;

import io.netty.channel.ChannelDuplexHandler;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelPromise;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.LastHttpContent;
import io.netty.util.concurrent.ScheduledFuture;

import java.util.concurrent.TimeUnit;

/** The requests of one connection: counted until they are answered, and never waiting longer than the limit. */
final class Exchange extends ChannelDuplexHandler {

    /** Above the deadline that the worker keeps itself: only a worker that cannot answer at all is caught here. */
    private static final int LIMIT_S = Gate.setting("NEURON_SUM_LIMIT_S", 58);

    private int open;
    private ScheduledFuture<?> limit;

    void begin(ChannelHandlerContext ctx) {
        ++open;
        Gate.IN_FLIGHT.incrementAndGet();
        if (limit == null) {
            limit = ctx.executor().schedule(() -> giveUp(ctx), LIMIT_S, TimeUnit.SECONDS);
        }
    }

    /** {@inheritDoc} */
    @Override
    public void write(ChannelHandlerContext ctx, Object message, ChannelPromise promise) {
        Object sent = message instanceof FullHttpResponse ? Errors.shape((FullHttpResponse) message) : message;
        if (open > 0 && sent instanceof LastHttpContent && isFinal(sent)) {
            promise = promise.unvoid();
            promise.addListener(written -> end(1));
            if (sent instanceof HttpResponse && ((HttpResponse) sent).status().code() < 400) {
                Workers.answered();
            }
        }
        ctx.write(sent, promise);
    }

    /** {@inheritDoc} */
    @Override
    public void channelInactive(ChannelHandlerContext ctx) {
        end(open);
        ctx.fireChannelInactive();
    }

    private static boolean isFinal(Object message) {
        return !(message instanceof HttpResponse) || ((HttpResponse) message).status().code() >= 200;
    }

    private void end(int answered) {
        int closed = Math.min(answered, open);
        open -= closed;
        Gate.IN_FLIGHT.addAndGet(-closed);
        if (open == 0 && limit != null) {
            limit.cancel(false);
            limit = null;
        }
    }

    private void giveUp(ChannelHandlerContext ctx) {
        if (open > 0) {
            Gate.LOGGER.error("no answer within {} s: the worker hangs", LIMIT_S);
            Errors.send(ctx, 503, "no answer within " + LIMIT_S + " s; send the request again");
        }
    }
}
