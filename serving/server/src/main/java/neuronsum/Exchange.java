package neuronsum;

import ai.djl.Model;

import io.netty.buffer.Unpooled;
import io.netty.channel.ChannelDuplexHandler;
import io.netty.channel.ChannelFutureListener;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelPromise;
import io.netty.handler.codec.http.FullHttpResponse;
import io.netty.handler.codec.http.HttpRequest;
import io.netty.handler.codec.http.HttpResponse;
import io.netty.handler.codec.http.HttpServerCodec;
import io.netty.handler.codec.http.HttpUtil;
import io.netty.handler.codec.http.LastHttpContent;
import io.netty.util.ReferenceCountUtil;
import io.netty.util.concurrent.ScheduledFuture;

import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;

/**
 * The requests of one connection: allows or rejects them before their body is read, passes them on one after another,
 * counts them until they are answered, and limits their waiting time.
 *
 * <p>DJL handles pipelined requests at the same time and writes each answer when it is ready. Here a request that
 * arrives while another one is unanswered waits, so that the answers have the order of the requests.
 */
final class Exchange extends ChannelDuplexHandler {

    /** Seconds until a request is refused; longer than the worker's deadline, so only for a worker that cannot answer. */
    private static final int LIMIT_S = Gate.setting("NEURON_SUM_LIMIT_S", 58);

    /** Maximum number of waiting parts of pipelined requests; above it, reading from the connection is paused. */
    private static final int MOST_WAITING = 64;

    private static final String CONTINUE = "HTTP/1.1 100 Continue\r\n\r\n";

    /** The connections with an unanswered request. */
    private static final Set<Exchange> OPEN = ConcurrentHashMap.newKeySet();

    /** Parts of later requests that wait until an earlier one is answered. */
    private final Queue<Object> waiting = new ArrayDeque<>();

    private ChannelHandlerContext gate;
    private Request open;
    private boolean begun;
    private boolean successful;

    /** State of the current request: reading, then answering; rejected is final. */
    private enum State { IDLE, READING, ANSWERED_EARLY, ANSWERING, REJECTED }

    private State state = State.IDLE;

    /** A request: the failures of its model when it arrived, and the timer of its limit. */
    private record Request(Map<Model, Integer> failures, ScheduledFuture<?> limit) {}

    void begin(ChannelHandlerContext ctx, Map<Model, Integer> failures) {
        gate = ctx;
        Runnable giveUp = () -> refuse("no answer within " + LIMIT_S + " s; send the request again");
        open = new Request(failures, ctx.executor().schedule(giveUp, LIMIT_S, TimeUnit.SECONDS));
        OPEN.add(this);
        Gate.IN_FLIGHT.incrementAndGet();
    }

    /** Answers 503 to every waiting request on every connection. */
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

    /** Answers immediately, without reading the body, and closes the connection. */
    private void reject(ChannelHandlerContext ctx, Object part, Access.Refusal refusal) {
        state = State.REJECTED;
        ReferenceCountUtil.release(part);
        FullHttpResponse response = Errors.rejection(refusal.code(), refusal.message());
        ctx.writeAndFlush(response).addListener(ChannelFutureListener.CLOSE);
    }

    /** {@inheritDoc} */
    @Override
    public void write(ChannelHandlerContext ctx, Object message, ChannelPromise promise) {
        if (state == State.IDLE || state == State.REJECTED) { // a second answer, or one after the connection's last
            ReferenceCountUtil.release(message);
            promise.unvoid().trySuccess();
            return;
        }
        Object part = message instanceof FullHttpResponse ? Errors.shape((FullHttpResponse) message) : message;
        if (!isFinal(part)) {
            // Past the codec, which would take a 100 for the answer to the request.
            ReferenceCountUtil.release(part);
            ChannelHandlerContext codec = ctx.pipeline().context(HttpServerCodec.class);
            codec.writeAndFlush(Unpooled.copiedBuffer(CONTINUE, StandardCharsets.US_ASCII), promise);
            return;
        }
        if (open != null && !begun && part instanceof LastHttpContent && !(part instanceof HttpResponse)) {
            // The end of an answer without content: its only chunk arrived between the two steps of
            // ChunkedBytesSupplier.appendContent, and InferenceRequestHandler.sendOutput missed it.
            ReferenceCountUtil.release(part);
            promise.unvoid().trySuccess();
            refuse("the answer was lost in the server; send the request again");
            return;
        }
        begun = !(part instanceof LastHttpContent);
        if (part instanceof HttpResponse) {
            successful = ((HttpResponse) part).status().code() < 400;
        }
        if (part instanceof LastHttpContent) {
            boolean last = part instanceof HttpResponse && !HttpUtil.isKeepAlive((HttpResponse) part);
            promise = promise.unvoid();
            promise.addListener(written -> {
                end();
                if (!written.isSuccess() && ctx.channel().isActive()) { // for example an error in mid-answer
                    Gate.LOGGER.warn("cannot write an answer; closing the connection", written.cause());
                    ctx.close();
                } else if (last) { // its sender closes the connection
                    state = State.REJECTED;
                    release();
                } else if (state == State.READING) { // 413 is sent before the end of the body
                    state = State.ANSWERED_EARLY;
                } else if (state == State.ANSWERING) {
                    next(ctx);
                }
            });
            if (open != null && successful) {
                Workers.resetFailures(open.failures());
            }
        }
        ctx.write(part, promise);
    }

    /** Passes on the first waiting request, up to its end. */
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
            Gate.LOGGER.error("refused a waiting request: {}", message);
            Errors.send(gate, 503, message);
        }
    }
}
