package neuronsum;

import ai.djl.Model;

import io.netty.channel.ChannelDuplexHandler;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelPromise;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.LastHttpContent;
import io.netty.util.ReferenceCountUtil;
import io.netty.util.concurrent.ScheduledFuture;

import java.util.ArrayDeque;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;

/** The requests of one connection: counted until they are answered, and never waiting longer than the limit. */
final class Exchange extends ChannelDuplexHandler {

    /** Above the deadline that the worker keeps itself: only a worker that cannot answer at all is caught here. */
    private static final int LIMIT_S = Gate.setting("NEURON_SUM_LIMIT_S", 58);

    /** The connections that have requests to be answered. */
    private static final Set<Exchange> WAITING = ConcurrentHashMap.newKeySet();

    private final Queue<Request> open = new ArrayDeque<>();
    private ChannelHandlerContext gate;
    private boolean begun;

    /** A request, the failures of its model when it came, and what ends its waiting. */
    private record Request(Map<Model, Integer> failures, ScheduledFuture<?> limit) {}

    void begin(ChannelHandlerContext ctx, Map<Model, Integer> failures) {
        gate = ctx;
        Runnable giveUp = () -> refuse("no answer within " + LIMIT_S + " s; send the request again");
        open.add(new Request(failures, ctx.executor().schedule(giveUp, LIMIT_S, TimeUnit.SECONDS)));
        WAITING.add(this);
        Gate.IN_FLIGHT.incrementAndGet();
    }

    /** Answers 503 to whoever still waits, on every connection. */
    static void refuseAll(String message) {
        WAITING.forEach(exchange -> exchange.gate.executor().execute(() -> exchange.refuse(message)));
    }

    /** {@inheritDoc} */
    @Override
    public void write(ChannelHandlerContext ctx, Object message, ChannelPromise promise) {
        Object sent = message instanceof FullHttpResponse ? Errors.shape((FullHttpResponse) message) : message;
        if (!open.isEmpty() && !begun && sent instanceof LastHttpContent && !(sent instanceof HttpResponse)) {
            // The end of an answer of which nothing came: its only chunk arrived between the two steps of
            // ChunkedBytesSupplier.appendContent, and InferenceRequestHandler.sendOutput saw neither it nor that it would.
            ReferenceCountUtil.release(sent);
            promise.unvoid().trySuccess();
            refuse("the answer was lost on its way; send the request again");
            return;
        }
        begun = isFinal(sent) && !(sent instanceof LastHttpContent);
        if (!open.isEmpty() && sent instanceof LastHttpContent && isFinal(sent)) {
            promise = promise.unvoid();
            promise.addListener(written -> {
                end();
                if (!written.isSuccess()) { // such as an error when a part of another answer is out already
                    Gate.LOGGER.warn("an answer could not be written, the connection is closed", written.cause());
                    ctx.close();
                }
            });
            if (sent instanceof HttpResponse && ((HttpResponse) sent).status().code() < 400) {
                Workers.answered(open.element().failures());
            }
        }
        ctx.write(sent, promise);
    }

    /** {@inheritDoc} */
    @Override
    public void channelInactive(ChannelHandlerContext ctx) {
        while (!open.isEmpty()) {
            end();
        }
        ctx.fireChannelInactive();
    }

    private static boolean isFinal(Object message) {
        return !(message instanceof HttpResponse) || ((HttpResponse) message).status().code() >= 200;
    }

    private void end() {
        Request answered = open.poll();
        if (answered != null) {
            answered.limit().cancel(false);
            Gate.IN_FLIGHT.decrementAndGet();
        }
        if (open.isEmpty()) {
            WAITING.remove(this);
        }
    }

    private void refuse(String message) {
        if (!open.isEmpty()) {
            Gate.LOGGER.error("refused while it waited: {}", message);
            Errors.send(gate, 503, message);
        }
    }
}
