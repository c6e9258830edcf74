//! Named steps: every piece of work that takes longer than a moment runs inside one. A step says
//! when it starts, shows what it is doing every few seconds, and says how long it took.
//!
//! Steps may run at the same time in several threads, so each line carries its step's name.
//! Not here: what is cached and under which key (`cache.rs`).

use std::{
    collections::VecDeque,
    io::Read,
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::out::{self, note};

/// Lines of a failed command's output that its error repeats.
const LINES_IN_ERROR: usize = 40;

/// A running step. Threads may share it.
#[derive(Debug)]
pub(crate) struct Step {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ended: bool,
    progress: String,
}

/// Runs `work` as the step `name`, with progress on stderr.
///
/// # Errors
/// What `work` returned, with the step's name in front.
pub(crate) fn step<T>(name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let step = Step {
        shared: Arc::default(),
    };
    let started = Instant::now();
    note!("{name}: start");
    let ticker = {
        let (name, shared) = (name.to_owned(), Arc::clone(&step.shared));
        std::thread::spawn(move || tick(&name, started, &shared))
    };
    let result = work(&step);
    step.lock().ended = true;
    step.shared.ended.notify_all();
    let _the_ticker_cannot_panic = ticker.join();
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(_) => note!("{name}: done in {seconds:.1} s"),
        Err(_) => note!("{name}: failed after {seconds:.1} s"),
    }
    result.with_context(|| format!("step \"{name}\" failed"))
}

/// Says that a step had nothing to do.
pub(crate) fn skipped(name: &str, why: &str) {
    note!("{name}: {why}");
}

impl Step {
    /// What the next progress line shows.
    pub(crate) fn progress(&self, text: impl Into<String>) {
        self.lock().progress = text.into();
    }

    /// Runs a command to its end; its last line of output is the progress.
    ///
    /// # Errors
    /// If it cannot be started, or its exit code is not 0: then with the end of its output.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        self.run_watched(command, |line| Some(line.to_owned()))
    }

    /// As [`Step::run`]; `watch` turns a line of output into the progress text, or into `None` if
    /// the line says nothing worth showing.
    ///
    /// # Errors
    /// As [`Step::run`].
    pub(crate) fn run_watched(
        &self,
        command: &mut Command,
        mut watch: impl FnMut(&str) -> Option<String>,
    ) -> Result<()> {
        let (reader, writer) = std::io::pipe().context("failed to make a pipe")?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("failed to copy a pipe")?)
            .stderr(writer);
        let shown = show(command);
        let mut child = command
            .spawn()
            .with_context(|| format!("failed to start `{shown}`: is it installed?"))?;
        // `command` still holds the write end: drop it, or the loop below never sees the end.
        command.stdout(Stdio::null()).stderr(Stdio::null());

        let mut last = VecDeque::new();
        for_each_line(reader, |line| {
            if let Some(text) = watch(line) {
                self.progress(text);
            }
            if last.len() == LINES_IN_ERROR {
                last.pop_front();
            }
            last.push_back(line.to_owned());
        })?;
        let status = child
            .wait()
            .with_context(|| format!("failed to wait for `{shown}`"))?;
        if !status.success() {
            let output = last.into_iter().collect::<Vec<_>>().join("\n  ");
            bail!("`{shown}` ended with {status}; the end of its output:\n  {output}");
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a short command and returns its stdout.
///
/// # Errors
/// If it cannot be started, or its exit code is not 0: then with its stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    output_of(command.stdin(Stdio::null()))
}

/// As [`output`], for a command whose stdin is set already.
///
/// # Errors
/// As [`output`].
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command
        .output()
        .with_context(|| format!("failed to start `{shown}`: is it installed?"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` ended with {}: {}", output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` did not print UTF-8"))
}

/// Tries `check` three times a second until it succeeds.
///
/// # Errors
/// It still failed when `patience` had passed: its last error, and `what` was waited for.
pub(crate) fn eventually<T>(
    what: &str,
    patience: Duration,
    check: impl Fn() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match check() {
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("waited {patience:?} for {what}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
            done => return done,
        }
    }
}

/// The command as a person would type it, without its environment.
pub(crate) fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    words.join(" ")
}

fn tick(name: &str, started: Instant, shared: &Shared) {
    // A log is read from its end, and what failed should not be lost among lines of progress.
    let every = Duration::from_secs(if out::has_reader() { 3 } else { 60 });
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    while !state.ended {
        let waited = shared
            .ended
            .wait_timeout(state, every)
            .unwrap_or_else(PoisonError::into_inner);
        state = waited.0;
        if waited.1.timed_out() && !state.ended {
            let seconds = started.elapsed().as_secs();
            let progress: String = state.progress.chars().take(100).collect();
            note!("{name}: … {seconds} s {progress}");
        }
    }
}

/// Calls `each` for every line; tools that redraw their line end it with a carriage return.
fn for_each_line(mut reader: impl Read, mut each: impl FnMut(&str)) -> Result<()> {
    let mut pending = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("failed to read a command's output"),
        };
        for &byte in buffer.iter().take(read) {
            if byte == b'\n' || byte == b'\r' {
                let line = String::from_utf8_lossy(&pending);
                if !line.trim().is_empty() {
                    each(line.trim_end());
                }
                pending.clear();
            } else {
                pending.push(byte);
            }
        }
        if read == 0 {
            let line = String::from_utf8_lossy(&pending);
            if !line.trim().is_empty() {
                each(line.trim_end());
            }
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_newlines_carriage_returns_and_the_end() {
        let mut lines = Vec::new();
        for_each_line(&b"one\n\n 50%\r100%\nlast"[..], |line| {
            lines.push(line.to_owned())
        })
        .unwrap();
        assert_eq!(lines, ["one", " 50%", "100%", "last"]);
    }

    #[test]
    fn a_failed_command_names_itself_and_repeats_its_output() {
        let error = step("test", |step| {
            step.run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
        })
        .unwrap_err();
        let text = format!("{error:#}");
        for part in ["step \"test\" failed", "exit status: 3", "out\n  err"] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }
}
