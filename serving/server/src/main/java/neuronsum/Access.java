package neuronsum;

import io.netty.handler.codec.http.HttpHeaderNames;
import io.netty.handler.codec.http.HttpHeaders;
import io.netty.handler.codec.http.HttpMethod;
import io.netty.handler.codec.http.HttpRequest;
import io.netty.handler.codec.http.QueryStringDecoder;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Set;

/**
 * Decides who may call which route, from the head of a request alone.
 *
 * <p>Everybody who reaches the port may ask for a summary. Everything that changes the server (models, workflows,
 * scaling, adapters, logging) requires the token of this start. A browser obeys any web page, so requests that another
 * site caused are rejected on every route: by Host (DNS rebinding), Origin and Sec-Fetch-Site.
 *
 * <p>The public routes are listed; a route that is not listed never reaches DJL without the token.
 */
final class Access {

    /** The names a client may call this server by, separated by commas; * for any. */
    private static final String HOSTS = setting("NEURON_SUM_HOSTS", "127.0.0.1,localhost,[::1]");

    /** A file with the token. Without one, no request can change the server. */
    private static final String TOKEN_FILE = setting("NEURON_SUM_TOKEN_FILE", "");

    /** SageMaker loads and unloads the models of a multi-model endpoint, without a token. */
    private static final boolean MULTI_MODEL = Boolean.parseBoolean(setting("SAGEMAKER_MULTI_MODEL", "false"));

    private static final Set<String> INFERENCE = Set.of("ping", "invocations", "predictions", "v1");
    private static final Set<String> PAGES = Set.of("", "playground");
    private static final Set<String> MANAGEMENT = Set.of("models", "workflows", "server", "adapters", "cluster");
    private static final Set<String> SAME_SITE = Set.of("same-origin", "none");
    private static final String BEARER = "Bearer ";

    private static final byte[] TOKEN = TOKEN_FILE.isEmpty() ? new byte[0] : read(Path.of(TOKEN_FILE));

    private Access() {}

    /**
     * Why a request is rejected.
     *
     * @param code the HTTP status
     * @param message what is wrong, and what is allowed
     */
    record Refusal(int code, String message) {}

    /** Why this request is rejected, or null if it is allowed. */
    static Refusal refusal(HttpRequest request) {
        if (!request.decoderResult().isSuccess()) {
            return null; // DJL answers 400 to whatever is not HTTP, on every route
        }
        HttpHeaders headers = request.headers();
        List<String> hosts = headers.getAll(HttpHeaderNames.HOST);
        String host = hosts.size() == 1 ? hosts.get(0).toLowerCase(Locale.ROOT) : "";
        if (!isOwn(host) || hosts.size() > 1) {
            return new Refusal(403, "Host " + hosts + " is not one of " + HOSTS + ": open the server by its own address");
        }
        for (String origin : headers.getAll(HttpHeaderNames.ORIGIN)) {
            String lower = origin.toLowerCase(Locale.ROOT);
            if (host.isEmpty() || !lower.equals("http://" + host) && !lower.equals("https://" + host)) {
                return new Refusal(403, "requests from the web page " + origin + " are not allowed");
            }
        }
        for (String site : headers.getAll("Sec-Fetch-Site")) {
            if (!SAME_SITE.contains(site.toLowerCase(Locale.ROOT))) {
                return new Refusal(403, "requests from other web pages are not allowed (Sec-Fetch-Site: " + site + ")");
            }
        }
        return route(request);
    }

    private static boolean isOwn(String host) {
        if ("*".equals(HOSTS)) {
            return true;
        }
        int port = host.lastIndexOf(':');
        String name = port > host.lastIndexOf(']') ? host.substring(0, port) : host;
        return List.of(HOSTS.split(",")).contains(name);
    }

    private static Refusal route(HttpRequest request) {
        String uri = request.uri();
        if (!uri.startsWith("/")) {
            return new Refusal(400, "the request target must be a path that starts with /");
        }
        boolean query = uri.indexOf('?') >= 0;
        String[] path = (query ? uri.substring(0, uri.indexOf('?')) : uri).split("/", -1);
        if (Arrays.stream(path).anyMatch(part -> ".".equals(part) || "..".equals(part))) {
            return new Refusal(400, "a path must not contain . or .. as a part");
        }
        String first = path[1];
        HttpMethod method = request.method();
        if (INFERENCE.contains(first) || PAGES.contains(first) && HttpMethod.GET.equals(method)) {
            return null;
        }
        if (path.length == 2 && first.isEmpty() && HttpMethod.OPTIONS.equals(method)) {
            return null;
        }
        if (isMetrics(path) && HttpMethod.GET.equals(method)) {
            return null;
        }
        // With a query DJL takes an invocation that is not a POST for one of its management calls.
        if (isInvoke(path) && (!query || HttpMethod.POST.equals(method))) {
            return null;
        }
        if (!MANAGEMENT.contains(first)) {
            return new Refusal(404, "no route " + new QueryStringDecoder(uri).rawPath() + " on this server");
        }
        if ("workflows".equals(first) && !HttpMethod.GET.equals(method)) {
            return new Refusal(403, "workflows are not supported: they load models from any URL");
        }
        if (MULTI_MODEL && isMultiModel(path, method)) {
            return null;
        }
        return authorized(request.headers().getAll(HttpHeaderNames.AUTHORIZATION));
    }

    /** POST /models/M/invoke. */
    private static boolean isInvoke(String[] path) {
        return path.length == 4 && "models".equals(path[1]) && "invoke".equals(path[3]);
    }

    private static boolean isMetrics(String[] path) {
        return path.length == 3 && "server".equals(path[1]) && "metrics".equals(path[2]);
    }

    /** What SageMaker calls: GET and POST /models, GET and DELETE /models/M. */
    private static boolean isMultiModel(String[] path, HttpMethod method) {
        HttpMethod other = path.length == 2 ? HttpMethod.POST : HttpMethod.DELETE;
        return "models".equals(path[1])
                && path.length <= 3
                && (HttpMethod.GET.equals(method) || other.equals(method));
    }

    private static Refusal authorized(List<String> given) {
        if (TOKEN.length == 0) {
            return new Refusal(403, "this server has no token, so that nothing about it can be changed");
        }
        String sent = given.size() == 1 && given.get(0).startsWith(BEARER) ? given.get(0).substring(BEARER.length()) : "";
        if (!MessageDigest.isEqual(sent.getBytes(StandardCharsets.UTF_8), TOKEN)) {
            return new Refusal(401, "this route requires the server's token: Authorization: Bearer TOKEN");
        }
        return null;
    }

    private static byte[] read(Path file) {
        try {
            byte[] token = Files.readString(file).strip().getBytes(StandardCharsets.UTF_8);
            if (token.length == 0) {
                throw new IllegalStateException(file + " is empty; it must hold the token");
            }
            return token;
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    private static String setting(String name, String otherwise) {
        String value = System.getenv(name);
        return value == null || value.isBlank() ? otherwise : value;
    }
}
