package neuronsum;

import ai.djl.Model;

import io.netty.channel.ChannelDuplexHandler;
import io.netty.channel.ChannelFutureListener;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelPromise;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpRequest;
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

/**
 * The requests of one connection: allowed or rejected before their body is read, passed on one after another, counted
 * until they are answered, and never waiting longer than the limit.
 *
 * <p>DJL handles pipelined requests at the same time and writes each answer when it is ready. Here a request that comes
 * while another one is unanswered waits, so that the answers have the requests' order.
 */
final class Exchange extends ChannelDuplexHandler {

    /** Above the deadline that the worker keeps itself: only a worker that cannot answer at all is caught here. */
    private static final int LIMIT_S = Gate.setting("NEURON_SUM_LIMIT_S", 58);

    /** Parts of pipelined requests that may wait before the connection is read more slowly than its client sends. */
    private static final int MOST_WAITING = 64;

    /** The connections that have a request to be answered. */
    private static final Set<Exchange> OPEN = ConcurrentHashMap.newKeySet();

    /** Parts of later requests, while an earlier one is unanswered. */
    private final Queue<Object> waiting = new ArrayDeque<>();

    private ChannelHandlerContext gate;
    private Request open;
    private boolean begun;

    /** Where the current request is: being read, then being answered; rejected is final. */
    private enum State { IDLE, READING, ANSWERED_EARLY, ANSWERING, REJECTED }

    private State state = State.IDLE;

    /** A request, the failures of its model when it came, and what ends its waiting. */
    private record Request(Map<Model, Integer> failures, ScheduledFuture<?> limit) {}

    void begin(ChannelHandlerContext ctx, Map<Model, Integer> failures) {
        gate = ctx;
        Runnable giveUp = () -> refuse("no answer within " + LIMIT_S + " s; send the request again");
        open = new Request(failures, ctx.executor().schedule(giveUp, LIMIT_S, TimeUnit.SECONDS));
        OPEN.add(this);
        Gate.IN_FLIGHT.incrementAndGet();
    }

    /** Answers 503 to whoever still waits, on every connection. */
    static void refuseAll(String message) {
        OPEN.forEach(exchange -> exchange.gate.executor().execute(() -> exchange.refuse(message)));
    }

    /** {@inheritDoc} */
    @Override
    public void channelRead(ChannelHandlerContext ctx, Object part) {
        if (state == State.REJECTED) {
            ReferenceCountUtil.release(part);
        } else if (state == State.ANSWERING || !waiting.isEmpty()) {
            waiting.add(part);
            ctx.channel().config().setAutoRead(waiting.size() < MOST_WAITING);
        } else {
            pass(ctx, part);
        }
    }

    private void pass(ChannelHandlerContext ctx, Object part) {
        if (part instanceof HttpRequest) {
            Access.Refusal refusal = Access.refusal((HttpRequest) part);
            if (refusal != null) {
                reject(ctx, part, refusal);
                return;
            }
            state = State.READING;
        }
        if (part instanceof LastHttpContent) {
            state = state == State.ANSWERED_EARLY ? State.IDLE : State.ANSWERING;
        }
        ctx.fireChannelRead(part);
    }

    /** Answers at once, without the body, and closes the connection. */
    private void reject(ChannelHandlerContext ctx, Object part, Access.Refusal refusal) {
        state = State.REJECTED;
        ReferenceCountUtil.release(part);
        FullHttpResponse response = Errors.rejection(refusal.code(), refusal.message());
        ctx.writeAndFlush(response).addListener(ChannelFutureListener.CLOSE);
    }

    /** {@inheritDoc} */
    @Override
    public void write(ChannelHandlerContext ctx, Object message, ChannelPromise promise) {
        Object sent = message instanceof FullHttpResponse ? Errors.shape((FullHttpResponse) message) : message;
        if (open != null && !begun && sent instanceof LastHttpContent && !(sent instanceof HttpResponse)) {
            // The end of an answer of which nothing came: its only chunk arrived between the two steps of
            // ChunkedBytesSupplier.appendContent, and InferenceRequestHandler.sendOutput saw neither it nor that it would.
            ReferenceCountUtil.release(sent);
            promise.unvoid().trySuccess();
            refuse("the answer was lost on its way; send the request again");
            return;
        }
        begun = isFinal(sent) && !(sent instanceof LastHttpContent);
        if (sent instanceof LastHttpContent && isFinal(sent)) {
            promise = promise.unvoid();
            promise.addListener(written -> {
                end();
                if (!written.isSuccess() && ctx.channel().isActive()) { // such as an error after a part of an answer
                    Gate.LOGGER.warn("an answer could not be written, the connection is closed", written.cause());
                    ctx.close();
                } else if (state == State.READING) { // 413 comes before the end of the body
                    state = State.ANSWERED_EARLY;
                } else if (state == State.ANSWERING) {
                    next(ctx);
                }
            });
            if (open != null && sent instanceof HttpResponse && ((HttpResponse) sent).status().code() < 400) {
                Workers.answered(open.failures());
            }
        }
        ctx.write(sent, promise);
    }

    /** Passes on the request that waited longest, up to its end. */
    private void next(ChannelHandlerContext ctx) {
        state = State.IDLE;
        ctx.executor().execute(() -> {
            boolean active = ctx.channel().isActive(); // an error closes the connection after its answer
            while (active && !waiting.isEmpty() && state != State.ANSWERING && state != State.REJECTED) {
                pass(ctx, waiting.poll());
            }
            if (!active || state == State.REJECTED) {
                release();
            }
            ctx.channel().config().setAutoRead(waiting.size() < MOST_WAITING);
        });
    }

    /** {@inheritDoc} */
    @Override
    public void channelInactive(ChannelHandlerContext ctx) {
        end();
        release();
        ctx.fireChannelInactive();
    }

    private static boolean isFinal(Object message) {
        return !(message instanceof HttpResponse) || ((HttpResponse) message).status().code() >= 200;
    }

    private void end() {
        if (open != null) {
            open.limit().cancel(false);
            open = null;
            Gate.IN_FLIGHT.decrementAndGet();
        }
        OPEN.remove(this);
    }

    private void release() {
        waiting.forEach(ReferenceCountUtil::release);
        waiting.clear();
    }

    private void refuse(String message) {
        if (open != null) {
            Gate.LOGGER.error("refused while it waited: {}", message);
            Errors.send(gate, 503, message);
        }
    }
}
