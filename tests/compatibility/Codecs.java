import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import java.lang.reflect.Constructor;
import java.lang.reflect.Method;
import org.apache.kafka.common.protocol.ByteBufferAccessor;
import org.apache.kafka.common.protocol.Message;
import org.apache.kafka.common.protocol.ObjectSerializationCache;
import org.apache.kafka.common.protocol.Readable;

/**
 * Reads lines "class versionIn versionOut hex", decodes with the class at versionIn, and answers each with one line:
 * the message encoded at versionOut in hex (or "!" if that version cannot say it), a space, the message as JSON at
 * versionIn. "? error" if the bytes cannot be decoded. Empty hex is "-".
 */
public class Codecs {
    private static final HexFormat HEX = HexFormat.of();

    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(new java.io.FileOutputStream(java.io.FileDescriptor.out), false, StandardCharsets.UTF_8);
        Map<String, Constructor<?>> constructors = new HashMap<>();
        Map<String, Method> converters = new HashMap<>();
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = line.split(" ");
            short versionIn = Short.parseShort(words[1]);
            short versionOut = Short.parseShort(words[2]);
            Class<?> type = Class.forName(words[0]);
            if (!constructors.containsKey(words[0])) {
                constructors.put(words[0], type.getConstructor(Readable.class, short.class));
                converters.put(words[0], Class.forName(words[0] + "JsonConverter").getMethod("write", type, short.class));
            }
            ByteBuffer buffer = ByteBuffer.wrap(words[3].equals("-") ? new byte[0] : HEX.parseHex(words[3]));
            Message message;
            try {
                message = (Message) constructors.get(words[0]).newInstance(new ByteBufferAccessor(buffer), versionIn);
            } catch (Exception e) {
                out.println("? " + String.valueOf(e.getCause()).replace('\n', ' '));
                continue;
            }
            if (buffer.hasRemaining()) {
                out.println("? " + buffer.remaining() + " bytes are left");
                continue;
            }
            out.println(encode(message, versionOut) + " " + converters.get(words[0]).invoke(null, message, versionIn));
        }
        out.flush();
    }

    private static String encode(Message message, short version) {
        try {
            ObjectSerializationCache cache = new ObjectSerializationCache();
            ByteBuffer buffer = ByteBuffer.allocate(message.size(cache, version));
            message.write(new ByteBufferAccessor(buffer), cache, version);
            return buffer.position() == 0 ? "-" : HEX.formatHex(buffer.array(), 0, buffer.position());
        } catch (RuntimeException e) {
            return "!";
        }
    }
}
