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
import java.util.List;
import java.util.Locale;
import java.util.Set;

/**
 * Access control for every route, based only on the head of a request.
 *
 * <p>Any client that reaches the port may request summaries. Every route that changes the server (models, workflows,
 * scaling, adapters, logging) requires the token of this start. Because a browser sends requests for any web page,
 * requests from other sites are rejected on every route: by Host (DNS rebinding), Origin and Sec-Fetch-Site.
 *
 * <p>The public routes are listed; an unlisted route never reaches DJL without the token.
 */
final class Access {

    /** The allowed host names in the Host header, separated by commas; * for any. */
    private static final String HOSTS = setting("NEURON_SUM_HOSTS", "127.0.0.1,localhost,[::1]");

    /** The file with the token. Without a file, no request can change the server. */
    private static final String TOKEN_FILE = setting("NEURON_SUM_TOKEN_FILE", "");

    /** Whether SageMaker may load and unload the models of a multi-model endpoint without a token. */
    private static final boolean MULTI_MODEL = Boolean.parseBoolean(setting("SAGEMAKER_MULTI_MODEL", "false"));

    private static final Set<String> INFERENCE = Set.of("ping", "invocations", "predictions", "v1");
    private static final Set<String> PAGES = Set.of("", "playground");
    private static final Set<String> MANAGEMENT = Set.of("models", "workflows", "server", "adapters", "cluster");
    private static final Set<String> SAME_SITE = Set.of("same-origin", "none");
    private static final String BEARER = "Bearer ";

    private static final byte[] TOKEN = TOKEN_FILE.isEmpty() ? new byte[0] : read(Path.of(TOKEN_FILE));

    private Access() {}

    /** Reads the token, so that a server with a missing or empty token file does not start. */
    static void load() {
        Gate.LOGGER.info("routes that change this server {}", TOKEN.length == 0 ? "are closed" : "require the token");
    }

    /**
     * The rejection of a request.
     *
     * @param code the HTTP status
     * @param message the fault and the allowed values
     */
    record Refusal(int code, String message) {}

    /** The rejection of this request, or null if it is allowed. */
    static Refusal refusal(HttpRequest request) {
        if (!request.decoderResult().isSuccess()) {
            return null; // DJL answers 400 to invalid HTTP on every route
        }
        HttpHeaders headers = request.headers();
        List<String> hosts = headers.getAll(HttpHeaderNames.HOST);
        String host = hosts.size() == 1 ? hosts.get(0).toLowerCase(Locale.ROOT) : "";
        if (!isAllowedHost(host) || hosts.size() > 1) {
            return new Refusal(403, "Host " + hosts + " is not one of " + HOSTS + ": use the server's address");
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

    private static boolean isAllowedHost(String host) {
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
        String raw = query ? uri.substring(0, uri.indexOf('?')) : uri;
        String decoded;
        try {
            decoded = new QueryStringDecoder(raw).path();
        } catch (IllegalArgumentException e) {
            return new Refusal(400, "the path has an invalid escape");
        }
        // DJL matches routes in the raw path and takes names from the decoded one: both must have the same segments.
        String[] path = raw.split("/", -1);
        String[] names = decoded.split("/", -1);
        if (uri.indexOf('#') >= 0 || decoded.indexOf('?') >= 0 || path.length != names.length) {
            return new Refusal(400, "the path must not contain # or an escaped separator");
        }
        for (int i = 1; i < names.length; i++) {
            boolean empty = names[i].isEmpty() && i < names.length - 1;
            if (empty || ".".equals(names[i]) || "..".equals(names[i])) {
                return new Refusal(400, "the path must not contain an empty segment, . or ..");
            }
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
        // DJL treats an invocation with a query and another method than POST as a management call.
        if (isInvoke(path) && (!query || HttpMethod.POST.equals(method))) {
            return null;
        }
        if (!MANAGEMENT.contains(first)) {
            return new Refusal(404, "no route " + new QueryStringDecoder(uri).rawPath() + " on this server");
        }
        if ("workflows".equals(first) && !HttpMethod.GET.equals(method)) {
            return new Refusal(403, "workflows are not supported because they load models from any URL");
        }
        if (MULTI_MODEL && isMultiModel(path, method)) {
            return null;
        }
        return checkToken(request.headers().getAll(HttpHeaderNames.AUTHORIZATION));
    }

    /** Whether the path is /models/M/invoke. */
    private static boolean isInvoke(String[] path) {
        return path.length == 4 && "models".equals(path[1]) && "invoke".equals(path[3]);
    }

    private static boolean isMetrics(String[] path) {
        return path.length == 3 && "server".equals(path[1]) && "metrics".equals(path[2]);
    }

    /** Whether this is one of SageMaker's calls: GET and POST /models, GET and DELETE /models/M. */
    private static boolean isMultiModel(String[] path, HttpMethod method) {
        HttpMethod other = path.length == 2 ? HttpMethod.POST : HttpMethod.DELETE;
        return "models".equals(path[1])
                && path.length <= 3
                && (HttpMethod.GET.equals(method) || other.equals(method));
    }

    private static Refusal checkToken(List<String> values) {
        if (TOKEN.length == 0) {
            return new Refusal(403, "this route is disabled because the server was started without a token");
        }
        boolean bearer = values.size() == 1 && values.get(0).startsWith(BEARER);
        String token = bearer ? values.get(0).substring(BEARER.length()) : "";
        if (!MessageDigest.isEqual(token.getBytes(StandardCharsets.UTF_8), TOKEN)) {
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

    private static String setting(String name, String defaultValue) {
        String value = System.getenv(name);
        return value == null || value.isBlank() ? defaultValue : value;
    }
}
