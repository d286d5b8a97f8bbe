import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import org.apache.kafka.common.utils.Exit;

/**
 * Runs the main methods of tools one after the other in one JVM, as a shell runs commands.
 *
 * A line of the input is a command: its standard input, its class and its arguments, each as base64, with a space
 * between them and "-" for nothing. A line of the output is what came of it: exit code, standard output and error.
 */
public class Shell {
    static final class Ended extends Error {
        Ended(int code) {
            super("ended with " + code, null, false, false);
        }
    }

    static volatile Integer ended;
    static volatile Thread tool;
    static final List<Runnable> hooks = new CopyOnWriteArrayList<>();

    public static void main(String[] arguments) throws Exception {
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        PrintStream answers = System.out;
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        ByteArrayOutputStream err = new ByteArrayOutputStream();
        // Once and for all: Scala keeps the stream that it finds first.
        System.setOut(new PrintStream(out, true, "UTF-8"));
        System.setErr(new PrintStream(err, true, "UTF-8"));
        Exit.setExitProcedure((code, message) -> end(code));
        Exit.setHaltProcedure((code, message) -> end(code));
        Exit.setShutdownHookAdder((name, hook) -> hooks.add(hook));
        for (String line = commands.readLine(); line != null; line = commands.readLine()) {
            String[] words = Arrays.stream(line.split(" ")).map(Shell::decode).toArray(String[]::new);
            System.setIn(new ByteArrayInputStream(words[0].getBytes(StandardCharsets.UTF_8)));
            out.reset();
            err.reset();
            int code = run(words[1], Arrays.copyOfRange(words, 2, words.length));
            System.out.flush();
            System.err.flush();
            answers.println(code + " " + encode(out.toByteArray()) + " " + encode(err.toByteArray()));
            answers.flush();
        }
        Runtime.getRuntime().halt(0);
    }

    static int run(String name, String[] arguments) throws ReflectiveOperationException {
        ended = null;
        tool = Thread.currentThread();
        hooks.clear();
        try {
            Class.forName(name).getMethod("main", String[].class).invoke(null, (Object) arguments);
        } catch (InvocationTargetException error) {
            if (!(error.getCause() instanceof Ended)) {
                error.getCause().printStackTrace();
                ended = 1;
            }
        } finally {
            tool = null;
            hooks.forEach(Runnable::run);
        }
        return ended == null ? 0 : ended;
    }

    /** The first code counts: what a tool does with the error that ends it here it would not have lived to do. */
    static void end(int code) {
        if (ended == null) {
            ended = code;
        }
        if (Thread.currentThread() == tool) {
            throw new Ended(code);
        }
    }

    static String decode(String word) {
        return word.equals("-") ? "" : new String(Base64.getDecoder().decode(word), StandardCharsets.UTF_8);
    }

    static String encode(byte[] bytes) {
        return bytes.length == 0 ? "-" : Base64.getEncoder().encodeToString(bytes);
    }
}
