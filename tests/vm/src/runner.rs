//! Runs the registered tests one after the other, each in a process of its own, and reports them.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clock::Stamp;
use crate::kmsg::{self, KernelLog};
use crate::process::wait_child;
use crate::registry::{self, Role, Skip, Test};
use crate::report::{Event, Outcome, THOROUGH};
use crate::{cgroup, machine, netns};

/// Set by init: the tests would turn the network of a real host upside down.
pub const IN_VM: &str = "FAULTLINE_TEST_VM";

/// The host reads events here, undisturbed by kernel messages.
pub(crate) const EVENTS: &str = "/dev/ttyS1";

/// Where a test leaves its outcome.
const OUTCOME: &str = "/run/vm-tests-outcome";

/// Name that trouble between boot and the first test goes by.
const BOOT: &str = "boot::the_kernel_log_is_clean";

/// Which tests to run.
#[derive(Debug, PartialEq, Eq)]
struct Choice<'a> {
    /// Those whose name contains this.
    only: &'a str,
    /// Those before this one have run already.
    first: Option<&'a str>,
    /// From the last one to the first: another machine comes towards this one.
    backwards: bool,
    /// Tests that sample are to try everything.
    thorough: bool,
}

impl<'a> Choice<'a> {
    fn parse(mut words: &[&'a str]) -> Result<Self> {
        let mut choice = Self {
            only: "",
            first: None,
            backwards: false,
            thorough: false,
        };
        loop {
            words = match words {
                ["--backwards", rest @ ..] => {
                    choice.backwards = true;
                    rest
                }
                ["--thorough", rest @ ..] => {
                    choice.thorough = true;
                    rest
                }
                ["--only", part, rest @ ..] => {
                    choice.only = part;
                    rest
                }
                ["--from", first, rest @ ..] => {
                    choice.first = Some(first);
                    rest
                }
                [] => return Ok(choice),
                _ => bail!(
                    "usage: vm-runner run [--only PART-OF-A-NAME] [--from NAME] [--backwards] [--thorough]; got {words:?}"
                ),
            };
        }
    }

    /// On the kernel of this number.
    fn tests(&self, kernel: usize) -> Vec<&'static Test> {
        let mut tests = Test::all(self.only);
        tests.retain(|test| !self.only.is_empty() || test.is_on(kernel, machine::KERNELS));
        if self.backwards {
            tests.reverse();
        }
        let is_before = |test: &&Test| self.first.is_some_and(|first| test.full_name() != first);
        tests.into_iter().skip_while(is_before).collect()
    }
}

/// What `main` of the runner does: `run [--only X] [--from Y] [--backwards] [--thorough]`, or what the runner starts itself as,
/// `test NAME` and `role NAME ARGS`.
///
/// # Errors
/// Anything but a failed test; or that test, when it is `test`.
pub fn main(args: &[&str]) -> Result<()> {
    ensure!(
        std::env::var_os(IN_VM).is_some(),
        "this runs inside a VM only: start it with `cargo xtask vm`"
    );
    match args {
        ["test", name] => run_one(name),
        ["role", name, args] => {
            let role = Role::find(name).with_context(|| format!("no role {name}"))?;
            (role.run)(args)
        }
        ["run", words @ ..] => run_all(&Choice::parse(words)?),
        _ => bail!("a runner runs, or is a test or a role of one; got {args:?}"),
    }
}

fn run_all(choice: &Choice<'_>) -> Result<()> {
    netns::loopback_up()?;
    let mut events = OpenOptions::new().write(true).open(EVENTS).ok();
    let mut tell = |event: Event| -> Result<()> {
        let line = event.line();
        match &mut events {
            // A terminal turns \n into \r\n, which the host does not mind.
            Some(file) => writeln!(file, "{line}").context("failed to tell the host")?,
            None => print(&line),
        }
        Ok(())
    };
    let release = machine::release()?;
    let kernel = machine::kernel()?;
    let tests = choice.tests(kernel);
    print(&format!(
        "Linux {release}: {} tests, {} after boot",
        tests.len(),
        Stamp::now()
    ));
    tell(Event::Booted {
        release,
        tests: tests.len(),
    })?;
    let mut log = KernelLog::open()?;
    if let Some(report) = kmsg::splat(&log.read()?) {
        print(&format!("FAILED  {BOOT}: {report}"));
        let outcome = Outcome::Failed(report);
        tell(Event::Finished {
            test: BOOT.into(),
            outcome,
            seconds: 0.0,
        })?;
    }
    for test in tests {
        let name = test.full_name();
        let limit = test.limit * if choice.thorough { THOROUGH } else { 1 };
        tell(Event::Started {
            test: name.clone(),
            limit_seconds: limit.as_secs_f64(),
        })?;
        let start = Instant::now();
        let mut how = Vec::new();
        if choice.thorough {
            how.push(registry::IS_THOROUGH);
        }
        if !choice.only.is_empty() {
            how.push(registry::IS_ASKED_FOR);
        }
        if test.is_at_home(kernel, machine::KERNELS) {
            how.push(registry::IS_AT_HOME);
        }
        let outcome =
            run_apart(&name, limit, &how).unwrap_or_else(|e| Outcome::Failed(format!("{e:#}")));
        let outcome = judge(outcome, &mut log, cgroup::sweep());
        let seconds = start.elapsed().as_secs_f64();
        let text = match &outcome {
            Outcome::Passed => format!("ok      {name} ({seconds:.1} s)"),
            Outcome::Failed(why) => format!("FAILED  {name} ({seconds:.1} s): {why}"),
            Outcome::Skipped(why) => format!("skipped {name}: {why}"),
        };
        print(&text);
        tell(Event::Finished {
            test: name,
            outcome,
            seconds,
        })?;
    }
    tell(Event::Ended {
        seconds: Stamp::now().0 as f64 / 1e9,
    })
}

/// A test has failed as well if the kernel complained or something was left behind.
fn judge(outcome: Outcome, log: &mut KernelLog, swept: Result<()>) -> Outcome {
    let splat = match log.read() {
        Ok(messages) => kmsg::splat(&messages),
        Err(error) => Some(format!("{error:#}")),
    };
    match (outcome, splat, swept) {
        (Outcome::Failed(why), Some(splat), _) => {
            Outcome::Failed(format!("{why}\nand the kernel complained:\n{splat}"))
        }
        (_, Some(splat), _) => Outcome::Failed(format!("the kernel complained:\n{splat}")),
        (Outcome::Passed, None, Err(left)) => Outcome::Failed(format!("{left:#}")),
        (outcome, None, _) => outcome,
    }
}

/// Runs a test as a process of its own, with its limit and these variables set; what it prints goes to the console.
fn run_apart(name: &str, limit: Duration, how: &[&str]) -> Result<Outcome> {
    let _ = fs::remove_file(OUTCOME);
    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["test", name])
        .env("RUST_BACKTRACE", "1")
        .envs(how.iter().map(|word| (word, "1")))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn().context("failed to start the test")?;
    drop(command);
    let console = std::thread::spawn(move || pass_on(reader));
    let ended = wait_child(&mut child, limit);
    kill_the_rest(&mut child);
    forget_the_agent();
    let whole = machine::load_modules();
    let tail = console.join().unwrap_or_default();
    let status = ended.with_context(|| format!("hung; it printed last:\n{tail}"))?;
    whole.context("the machine has not all of its modules again")?;
    match fs::read(OUTCOME) {
        Ok(json) => Ok(serde_json::from_slice(&json)?),
        Err(_) => bail!("ended with {status}; it printed last:\n{tail}"),
    }
}

/// Ends the test and all that it has started and not ended: everybody but init and the runner.
fn kill_the_rest(child: &mut Child) {
    // Mostly there is nobody left.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    let _ = child.wait();
}

/// Removes what a killed agent leaves, so that the next test finds a fresh node. That it does so is
/// what an agent is for; it is no failure.
fn forget_the_agent() {
    for path in [machine::PINS, "/run/faultline"] {
        let _ = fs::remove_dir_all(path);
    }
}

/// Copies to the console and returns the last lines.
fn pass_on(from: impl Read) -> String {
    let mut last = Vec::new();
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        print(&format!("   | {line}"));
        if last.len() == 20 {
            last.remove(0);
        }
        last.push(line);
    }
    last.join("\n")
}

/// One test, in its own process.
fn run_one(name: &str) -> Result<()> {
    let test = Test::all(name).into_iter().find(|t| t.full_name() == name);
    let result = (test.with_context(|| format!("no test {name}"))?.run)();
    let outcome = match &result {
        Ok(()) => Outcome::Passed,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(reason)) => Outcome::Skipped(reason.clone()),
            None => Outcome::Failed(format!("{error:#}")),
        },
    };
    let mut file = File::create(Path::new(OUTCOME)).context("failed to leave the outcome")?;
    file.write_all(&serde_json::to_vec(&outcome)?)?;
    Ok(())
}

fn print(line: &str) {
    // The console is all there is.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
