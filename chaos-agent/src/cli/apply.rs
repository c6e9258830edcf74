//! `apply`: a fault on this host, for as long as this command runs or the fault lasts. It ends
//! when the kernel has been asked whether everything is gone.

mod session;

use std::io::{self, Read};
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use chaos_api::documents::{self, Document, MAX_BYTES};
use chaos_planner::fault::{Fault, Lifetime, TargetRef};
use chaos_planner::observed::{Counts, Observed, Phase};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::faults::{FaultRow, time_left};
use super::{Context, output};
use crate::args::{ApplyArgs, TargetArgs};
use crate::local;
use crate::target::{Finder, Resolved};
use session::Session;

/// How often the kernel is looked at, for the line of progress.
const LOOK: Duration = Duration::from_millis(250);

/// What `--json` prints, one line each.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "camelCase")]
enum Event {
    Armed {
        faults: Vec<FaultRow>,
    },
    Progress {
        faults: Vec<FaultRow>,
    },
    Recovered {
        why: &'static str,
        verified: bool,
        left: Vec<String>,
        faults: Vec<FaultRow>,
    },
}

pub(super) async fn run(context: Context, args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let documents = match read(&args.file)? {
        Ok(documents) => documents,
        Err(lines) => bail!(
            "{} cannot be applied\n{}",
            args.file.display(),
            lines.join("\n")
        ),
    };
    let resolved = find(&context, &args.target)?;
    let faults = faults(&documents, &args.file, &resolved, &context)?;
    notes(&context, &documents, &args.target, &resolved)?;
    // A signal that comes while programs are loaded must not leave a fault behind.
    let mut signals = Signals::new()?;
    let mut session = Session::open(&context.options).await?;
    let result = inject(&context, &mut session, faults, &mut signals).await;
    if result.is_err() {
        // Whatever went wrong, the fault does not stay.
        let _ = session.disarm(&[]).await;
    }
    let closed = session.close().await;
    let code = result?;
    closed?;
    Ok(code)
}

/// Arms, waits, recovers. The caller closes the session.
async fn inject(
    context: &Context,
    session: &mut Session,
    faults: Vec<Fault>,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let ids: Vec<String> = faults.iter().map(|fault| fault.id.clone()).collect();
    let mut last = Last::new(&faults);
    let first = session.arm(faults).await?;
    last.update(&first);
    let failed: Vec<String> = last
        .seen
        .iter()
        .filter(|fault| !matches!(fault.phase, Phase::Injected | Phase::Expired))
        .map(|fault| format!("{}: {}", fault.name, why_not(fault)))
        .collect();
    if !failed.is_empty() {
        session.disarm(&ids).await?;
        bail!("not armed: {}", failed.join("; "));
    }
    context.out.event(
        &Event::Armed {
            faults: last.rows(),
        },
        last.armed_text(),
    )?;

    let why = watch(context, session, &ids, &mut last, signals).await?;
    context.out.progress("")?;
    // The counts that the last packets made.
    last.update(&session.look(&ids).await?);
    let left = session.disarm(&ids).await?;
    let text = recovered_text(why, &left, &last.seen);
    let verified = left.is_empty();
    context.out.event(
        &Event::Recovered {
            why,
            verified,
            left,
            faults: last.rows(),
        },
        text,
    )?;
    Ok(if verified {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Until every fault has ended, or somebody wants it to.
async fn watch(
    context: &Context,
    session: &mut Session,
    ids: &[String],
    last: &mut Last,
    signals: &mut Signals,
) -> anyhow::Result<&'static str> {
    let mut told = Instant::now();
    loop {
        let seen = session.look(ids).await?;
        let alive = |fault: &&Observed| {
            matches!(
                fault.phase,
                Phase::Injected | Phase::Pending | Phase::Failed
            )
        };
        let Some(next) = seen
            .iter()
            .filter(alive)
            .map(|fault| fault.expires_in)
            .min()
        else {
            let gone = seen.iter().any(|fault| fault.phase == Phase::TargetGone);
            // One that nobody wants any more may still be on its way out.
            let off = seen.iter().all(|fault| fault.phase == Phase::Recovering);
            let why = match (gone, off) {
                (true, _) => "the target is gone",
                (false, true) => "taken off by `chaos-agent recover`",
                (false, false) => "ended at its deadline",
            };
            last.update(&seen);
            return Ok(why);
        };
        last.update(&seen);
        if context.out.is_json() {
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                context.out.event(
                    &Event::Progress {
                        faults: last.rows(),
                    },
                    "",
                )?;
            }
        } else {
            context
                .out
                .progress(progress_text(&last.seen, last.leased))?;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK.min(next + Duration::from_millis(5))) => {}
            name = signals.next() => return Ok(name),
        }
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
            _ = self.hangup.recv() => "the terminal is gone",
        }
    }
}

/// What was seen last of each fault; one that has left keeps its counts.
struct Last {
    seen: Vec<Observed>,
    /// What is asked of each, in words.
    asked: Vec<String>,
    /// None has a duration.
    leased: bool,
}

impl Last {
    fn new(faults: &[Fault]) -> Self {
        let seen = faults
            .iter()
            .map(|fault| Observed {
                id: fault.id.clone(),
                kind: fault.kind.clone(),
                namespace: fault.namespace.clone(),
                name: fault.name.clone(),
                record: fault.record.clone(),
                phase: Phase::Pending,
                mechanisms: Vec::new(),
                reason: String::new(),
                degraded: false,
                counts: Counts::default(),
                expires_in: Duration::ZERO,
                armed_ago: Duration::ZERO,
                first_hit_ago: None,
            })
            .collect();
        let leased = faults
            .iter()
            .all(|f| matches!(f.lifetime, Lifetime::Leased { .. }));
        let asked = faults.iter().map(local::describe).collect();
        Self {
            seen,
            asked,
            leased,
        }
    }

    fn update(&mut self, observed: &[Observed]) {
        for fault in observed {
            if let Some(known) = self.seen.iter_mut().find(|known| known.id == fault.id) {
                known.clone_from(fault);
            }
        }
    }

    fn armed_text(&self) -> String {
        let mut lines = Vec::new();
        for (fault, asked) in self.seen.iter().zip(&self.asked) {
            let mut mechanisms: Vec<_> = fault.mechanisms.iter().map(|m| m.name()).collect();
            mechanisms.dedup();
            let by = mechanisms.join(" and ");
            let until = if self.leased {
                "until Ctrl-C".to_owned()
            } else {
                format!("for {}, Ctrl-C ends it now", time_left(fault.expires_in))
            };
            let degraded = if fault.degraded {
                format!(" (degraded: {})", fault.reason)
            } else {
                String::new()
            };
            lines.push(format!(
                "{}: {asked}: armed by {by}, {until}{degraded}",
                fault.name
            ));
        }
        lines.join("\n")
    }

    fn rows(&self) -> Vec<FaultRow> {
        self.seen.iter().map(FaultRow::from).collect()
    }
}

fn read(path: &Path) -> anyhow::Result<Result<Vec<Document>, Vec<String>>> {
    let mut text = String::new();
    let limit = MAX_BYTES as u64 + 1;
    let name = path.display().to_string();
    let read = if name == "-" {
        io::stdin().lock().take(limit).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("failed to open {name}"))?;
        file.take(limit).read_to_string(&mut text)
    };
    read.with_context(|| format!("failed to read {name}"))?;
    Ok(documents::parse_for_host(&text, &local::rules)
        .map_err(|errors| errors.lines(&name).collect()))
}

fn find(context: &Context, target: &TargetArgs) -> anyhow::Result<Resolved> {
    let finder = Finder::new(&context.options.cgroup_root, &context.options.proc_root);
    let found = match (&target.cgroup, target.pid, &target.container) {
        (Some(path), _, _) => finder.find_cgroup(path),
        (_, Some(pid), _) => finder.find_pid(pid),
        (_, _, Some(id)) => finder.find_container(id),
        (None, None, None) => bail!("name a target: --cgroup, --pid or --container"),
    };
    Ok(found?)
}

fn faults(
    documents: &[Document],
    file: &Path,
    resolved: &Resolved,
    context: &Context,
) -> anyhow::Result<Vec<Fault>> {
    let root = &context.options.cgroup_root;
    let below = resolved
        .pod_cgroup
        .strip_prefix(root)
        .unwrap_or(&resolved.pod_cgroup);
    let cgroup = Path::new("/").join(below);
    let file_stem = file
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("apply");
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    documents
        .iter()
        .enumerate()
        .map(|(index, chaos)| {
            let name = chaos.metadata().name.as_deref().unwrap_or(file_stem);
            let id = format!("local/{}.{started}/{index}/{name}", std::process::id());
            let target = TargetRef::Cgroup(cgroup.clone());
            let record = cgroup.display().to_string();
            local::fault(chaos, id, file_stem, &record, target, &addresses_of)
                .map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))
        })
        .collect()
}

/// As this host resolves names, with its own files and servers.
fn addresses_of(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

fn notes(
    context: &Context,
    documents: &[Document],
    target: &TargetArgs,
    resolved: &Resolved,
) -> anyhow::Result<()> {
    if documents.iter().any(local::selects_pods) {
        output::warn(
            "selector and mode say which pods; there are none here, so they are not used: the \
             target is the one named by the flag",
        );
    }
    let processes: usize = resolved.containers.iter().map(|c| c.pids.len()).sum();
    let cgroup = resolved.pod_cgroup.display();
    let plural = if processes == 1 { "" } else { "es" };
    context
        .out
        .say(format!("target: {cgroup}, {processes} process{plural}"))?;
    if processes == 0 {
        output::warn("there is no process in it now; those that are started in it later are hit");
    } else if target.container.is_none() && documents.iter().any(acts_on_packets) {
        output::warn(
            "a socket belongs to the cgroup that its process was in when it was opened: what was \
             opened before its process was moved in is not hit; start what you test inside",
        );
    }
    Ok(())
}

const fn acts_on_packets(document: &Document) -> bool {
    matches!(document, Document::Network(_))
}

fn why_not(fault: &Observed) -> String {
    match (fault.phase, fault.reason.as_str()) {
        (Phase::TargetGone, "") => "the target is gone".to_owned(),
        (phase, "") => format!("{phase:?}"),
        (_, reason) => reason.to_owned(),
    }
}

fn progress_text(faults: &[Observed], leased: bool) -> String {
    let sum = sum(faults);
    let left = faults
        .iter()
        .map(|fault| fault.expires_in)
        .max()
        .unwrap_or_default();
    let problem = faults.iter().find(|fault| fault.phase == Phase::Failed);
    let problem = problem.map_or_else(String::new, |fault| format!("  {}", why_not(fault)));
    let until = if leased {
        "until Ctrl-C".to_owned()
    } else {
        format!("{} left", time_left(left))
    };
    format!("{until}  {}{problem}", counts_text(&sum))
}

fn recovered_text(why: &str, left: &[String], faults: &[Observed]) -> String {
    let mut lines = vec![why.to_owned()];
    for fault in faults {
        lines.push(format!("{}: {}", fault.name, counts_text(&fault.counts)));
    }
    if left.is_empty() {
        lines.push("recovered, kernel verified clean".to_owned());
    } else {
        lines.push(format!(
            "still in the kernel: {}; nothing acts past its deadline; `chaos-agent recover --all` \
             tries again",
            left.join(", ")
        ));
    }
    lines.join("\n")
}

fn counts_text(counts: &Counts) -> String {
    let mut text = format!("{} matched, {} hit", counts.matched, counts.injected);
    if counts.would_inject > 0 {
        text.push_str(&format!(", {} would have been hit", counts.would_inject));
    }
    let dropped = counts.overflowed + counts.over_budget;
    if dropped > 0 {
        text.push_str(&format!(" ({dropped} of them dropped by full queues)"));
    }
    if counts.failed > 0 {
        text.push_str(&format!(", {} failed", counts.failed));
    }
    text
}

fn sum(faults: &[Observed]) -> Counts {
    let mut sum = Counts::default();
    for fault in faults {
        sum += fault.counts;
    }
    sum
}
