package neuronsum;

import io.netty.bootstrap.ChannelInitializerExtension;
import io.netty.channel.Channel;
import io.netty.channel.ChannelInitializer;

/**
 * Puts an {@link Exchange} before whatever else can answer on a connection.
 *
 * <p>Netty's aggregator answers 413 to a body that is too large, DJL 400 to a request that is no HTTP, both before any
 * plugin is asked.
 */
public final class Connections extends ChannelInitializerExtension {

    private static final String AGGREGATOR = "aggregator";

    /** {@inheritDoc} */
    @Override
    public void postInitializeServerChildChannel(Channel connection) {
        // Runs after DJL's own initializer, which was added before it.
        connection
                .pipeline()
                .addLast(
                        new ChannelInitializer<>() {
                            @Override
                            protected void initChannel(Channel channel) {
                                if (channel.pipeline().get(AGGREGATOR) != null) {
                                    channel.pipeline().addBefore(AGGREGATOR, "exchange", new Exchange());
                                }
                            }
                        });
    }
}
