package neuronsum;

import ai.djl.Model;
import ai.djl.serving.models.Endpoint;
import ai.djl.serving.models.ModelManager;
import ai.djl.serving.workflow.Workflow;

import io.netty.handler.codec.http.FullHttpRequest;
import io.netty.handler.codec.http.HttpMethod;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.Set;

/**
 * Marker files for models that are being unloaded.
 *
 * <p>When DJL unloads a model in async mode, it treats the connection that it closes as a dead worker and starts another
 * one that is never stopped (Connection.channelInactive, PyProcess.restartPythonWorkerAsyncMode). Therefore a marker is
 * written before the model is unloaded, and a worker that finds its marker at startup exits (serving/model.py), which
 * DJL accepts as final.
 */
final class Unloads {

    private static final Set<String> ROOTS = Set.of("models", "workflows");

    private Unloads() {}

    /** Writes the markers for DELETE /models/M[/VERSION], but not for /models/M/adapters/A. */
    static void markUnloaded(FullHttpRequest request, String[] path) {
        String version = path.length > 3 ? path[3] : null;
        if (path.length < 3
                || !ROOTS.contains(path[1])
                || "adapters".equals(version)
                || !HttpMethod.DELETE.equals(request.method())) {
            return;
        }
        Endpoint endpoint = ModelManager.getInstance().getEndpoints().get(path[2]);
        if (endpoint == null) {
            return;
        }
        for (Workflow workflow : endpoint.getWorkflows()) {
            if (version == null || version.equals(workflow.getVersion())) {
                for (Model model : Workers.models(workflow)) {
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
            Gate.LOGGER.warn("cannot mark {} as unloaded; its worker may restart", folder, e);
        }
    }
}
