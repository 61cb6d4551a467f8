package neuronsum;

import ai.djl.Model;
import ai.djl.serving.models.ModelManager;
import ai.djl.serving.wlm.ModelInfo;
import ai.djl.serving.wlm.WorkerPoolConfig;

import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpMethod;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.HexFormat;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;

/**
 * Models that are being unloaded, told to their workers.
 *
 * <p>When DJL unloads a model in async mode, the connection that it closes itself looks to it like a worker that died:
 * it starts another, which nobody ever stops (Connection.channelInactive, PyProcess.restartPythonWorkerAsyncMode). So a
 * mark is left before the model goes, and a worker that finds a fresh one while it starts ends at once
 * (serving/model.py), which DJL takes as final.
 */
final class Unloads {

    private Unloads() {}

    static void see(FullHttpRequest request, String[] segments) {
        if (segments.length != 3 || !"models".equals(segments[1]) || !HttpMethod.DELETE.equals(request.method())) {
            return;
        }
        for (WorkerPoolConfig<?, ?> pool : ModelManager.getInstance().getWpcs()) {
            if (pool instanceof ModelInfo && pool.getId().equals(segments[2])) {
                for (Model model : ((ModelInfo<?, ?>) pool).getModels().values()) {
                    mark(model.getModelPath());
                }
            }
        }
    }

    private static void mark(Path folder) {
        try {
            byte[] name = folder.toRealPath().toString().getBytes(StandardCharsets.UTF_8);
            String digest = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(name)).substring(0, 16);
            Path temporary = Paths.get(System.getProperty("java.io.tmpdir"));
            Files.write(temporary.resolve("neuron-sum-unloaded-" + digest), new byte[0]);
        } catch (IOException | NoSuchAlgorithmException e) {
            Gate.LOGGER.warn("the worker of {} may be started again after it was unloaded", folder, e);
        }
    }
}
