import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Instant;

/** Answers each line with what its clocks show, in JSON: nanoseconds of the wall clock, and of the monotonic one. */
public final class Clock {
  public static void main(String[] arguments) throws Exception {
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    System.out.println("ready");
    while (lines.readLine() != null) {
      Instant now = Instant.now();
      long wall = now.getEpochSecond() * 1_000_000_000L + now.getNano();
      System.out.println("[" + wall + "," + System.nanoTime() + "]");
    }
  }
}
