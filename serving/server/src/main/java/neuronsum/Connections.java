package neuronsum;

import io.netty.bootstrap.ChannelInitializerExtension;
import io.netty.channel.Channel;
import io.netty.channel.ChannelInitializer;

/**
 * Adds an {@link Exchange} in front of every other handler that can answer on a connection.
 *
 * <p>Netty's aggregator answers 413 to a body that is too large, and DJL answers 400 to invalid HTTP, both before any
 * plugin is called.
 */
public final class Connections extends ChannelInitializerExtension {

    private static final String AGGREGATOR = "aggregator";

    /** {@inheritDoc} */
    @Override
    public void postInitializeServerChildChannel(Channel connection) {
        // Runs after DJL's initializer, which was added earlier.
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
