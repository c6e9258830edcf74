//! Temporary: where the time of opening a node goes.
use std::time::Instant;
fn main() {
    let t = Instant::now();
    let l = |what: &str, t: Instant| {
        let st = std::fs::read_to_string("/proc/self/stat").unwrap();
        let f: Vec<&str> = st.split(' ').collect();
        let what = format!("{what} utime {} stime {} (ticks)", f[13], f[14]);
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), "TIMING {what} {:?}", t.elapsed());
    };
    let b = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
    l("read btf", t);
    let _ = b.len();
    for _ in 0..2 {
        let t = Instant::now();
        let node = chaos_agent::node::Node::open(chaos_agent::node::Options::default());
        l("open", t);
        let t = Instant::now();
        if let Ok(n) = node {
            let _ = n.purge();
        }
        l("purge", t);
    }
}
