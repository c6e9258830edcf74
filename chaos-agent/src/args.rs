//! The command line, declared. What the commands do is in `cli.rs` and below.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::node;

/// Faults from inside the kernel: the agent of a node.
#[derive(Debug, Parser)]
#[command(name = "chaos-agent", version, propagate_version = true)]
pub struct Args {
    /// Where things are on this host.
    #[command(flatten)]
    pub host: HostArgs,
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where things are on this host.
#[derive(Clone, Debug, ClapArgs)]
pub struct HostArgs {
    /// A mounted bpffs.
    #[arg(long, global = true, default_value = "/sys/fs/bpf", value_name = "DIR")]
    pub bpffs: PathBuf,
    /// Lock, journal and socket of the agent.
    #[arg(
        long,
        global = true,
        default_value = "/run/faultline",
        value_name = "DIR"
    )]
    pub run_dir: PathBuf,
    /// Root of the cgroup2 hierarchy.
    #[arg(
        long,
        global = true,
        default_value = "/sys/fs/cgroup",
        value_name = "DIR"
    )]
    pub cgroup_root: PathBuf,
    /// procfs of the host.
    #[arg(long, global = true, default_value = "/proc", value_name = "DIR")]
    pub proc_root: PathBuf,
    /// How much of a target's traffic may wait on one of its devices; what is more is dropped and
    /// the fault is degraded. Bytes, or with KiB, MiB or GiB.
    #[arg(
        long,
        global = true,
        default_value = "64MiB",
        value_name = "BYTES",
        value_parser = bytes
    )]
    pub delay_budget: u64,
}

impl HostArgs {
    /// The same for the node.
    pub fn options(&self) -> node::Options {
        node::Options {
            bpffs: self.bpffs.clone(),
            run_dir: self.run_dir.clone(),
            cgroup_root: self.cgroup_root.clone(),
            proc_root: self.proc_root.clone(),
            delay_budget: self.delay_budget,
        }
    }
}

/// `64MiB`, or plain bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = [("KiB", 10), ("MiB", 20), ("GiB", 30)]
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, 1_u64 << shift)))
        .unwrap_or((text, 1));
    let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match bytes {
        Some(bytes @ 1_048_576..) => Ok(bytes),
        Some(_) => Err("must be at least 1MiB".to_owned()),
        None => Err("must be a whole number, with KiB, MiB or GiB or for bytes".to_owned()),
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Be the daemon of this node.
    Run(RunArgs),
    /// Say which faults this node can have, and why not the others.
    Doctor,
    /// List the faults of this node, with what the kernel has counted.
    Faults,
    /// Show what the kernel's maps hold.
    Maps {
        /// What to show.
        #[command(subcommand)]
        command: MapsCommand,
    },
    /// Inject the fault of a file into processes of this host, until it ends or Ctrl-C.
    Apply(ApplyArgs),
    /// Take faults off, and verify in the kernel that they are gone.
    Recover(RecoverArgs),
    /// Everything off, now; and nothing on again until `panic --resume`.
    Panic {
        /// Let faults act again.
        #[arg(long)]
        resume: bool,
    },
}

/// Arguments of `run`.
#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// Name of this node in the cluster. Default: the host's name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Serve the operator here, over mutual TLS. Absent: only the command line of this node.
    #[arg(long, value_name = "ADDR:PORT", requires = "tls_dir")]
    pub listen: Option<SocketAddr>,
    /// Serve /healthz, /readyz and /metrics here.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Directory with ca.crt, tls.crt and tls.key; read again when they change.
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
}

/// Arguments of `maps`.
#[derive(Debug, Subcommand)]
pub enum MapsCommand {
    /// Name, layout and use of each map.
    List,
    /// The elements of a map that are in use, decoded.
    Dump {
        /// Name, as `maps list` prints it.
        name: String,
        /// Bytes in hexadecimal, as the kernel holds them (little endian).
        #[arg(long)]
        raw: bool,
    },
    /// Rules and their counters, again and again until Ctrl-C.
    Watch {
        /// Seconds between two looks.
        #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
        interval: f64,
    },
}

/// Arguments of `apply`.
#[derive(Debug, ClapArgs)]
pub struct ApplyArgs {
    /// A NetworkChaos or TimeChaos in YAML or JSON, the same that `kubectl apply -f` takes; `-` is standard
    /// input. Its selectors mean nothing here and may be left out.
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// To whom.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// To whom `apply` does it.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub struct TargetArgs {
    /// Every process of this cgroup and of those below it: a path as in /proc/PID/cgroup.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Every process of the cgroup that this process is in.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// A container of any runtime, by its id or the first 12 characters of it.
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
}

/// Arguments of `recover`.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub struct RecoverArgs {
    /// Id of a fault, or the name (`<namespace>/<name>` or `<name>`) of the object it comes from.
    pub name: Option<String>,
    /// Every fault of this node.
    #[arg(long)]
    pub all: bool,
    /// Every fault, and all that the agent keeps in the kernel while idle: programs and maps.
    #[arg(long)]
    pub purge: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_declaration_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_belongs_together_is_required_together() {
        for (line, accepted) in [
            ("chaos-agent run", true),
            ("chaos-agent run --listen 0.0.0.0:31767", false),
            (
                "chaos-agent run --listen 0.0.0.0:31767 --tls-dir /etc/faultline/tls",
                true,
            ),
            ("chaos-agent apply -f x.yaml", false),
            ("chaos-agent apply -f x.yaml --pid 1", true),
            ("chaos-agent apply -f x.yaml --pid 1 --cgroup /a", false),
            ("chaos-agent apply --pid 1", false),
            ("chaos-agent recover", false),
            ("chaos-agent recover --all", true),
            ("chaos-agent recover --all --purge", false),
            ("chaos-agent recover ns/name --json", true),
            ("chaos-agent --json maps dump RULES --raw", true),
            ("chaos-agent maps", false),
            ("chaos-agent run --delay-budget 256MiB", true),
            ("chaos-agent run --delay-budget 1048576", true),
            ("chaos-agent run --delay-budget 64MB", false),
            ("chaos-agent run --delay-budget 1KiB", false),
        ] {
            assert_eq!(parse(line).is_ok(), accepted, "{line}");
        }
    }
}
