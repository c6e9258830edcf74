//! Starts virtual machines with QEMU. There is no KVM to count on: everything runs under TCG, so a
//! guest is about ten times slower than the host, and its CPU flags are QEMU's choice.
//!
//! A machine always has a hard time limit, kept by a `timeout` process around QEMU: it holds even
//! when this program is killed. Not here: what runs inside (`cluster/node.rs`, `vmtest.rs`).

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{setup, step};

/// Lines of the console that an error repeats.
const LINES_IN_ERROR: usize = 40;

/// What a machine that hangs is asked before it is ended, and how long it has for each answer: where
/// its CPUs are, twice, and then, by an interrupt that cannot be masked, a panic with its stacks (see
/// [`PANIC_ON_NMI`]).
const LAST_WORDS: [(&str, Duration); 4] = [
    ("info registers -a", Duration::from_secs(1)),
    ("info registers -a", Duration::from_secs(1)),
    ("nmi", Duration::from_secs(5)),
    ("quit", Duration::ZERO),
];

/// Parameter of the kernel that makes it print where each CPU is when QEMU sends it an NMI.
const PANIC_ON_NMI: &str = "unknown_nmi_panic";

/// What to start. Fields are independent of each other; `Machine::new` gives small defaults.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Shown by `ps` and in errors.
    pub(crate) name: String,
    /// A bzImage.
    pub(crate) kernel: PathBuf,
    /// A cpio archive (`initramfs.rs`), compressed or not.
    pub(crate) initrd: PathBuf,
    /// Appended to the kernel's command line, after what every machine gets.
    pub(crate) append: String,
    /// Virtual CPUs; each is a thread of QEMU.
    pub(crate) cpus: u32,
    /// Memory in MiB.
    pub(crate) memory_mib: u32,
    /// `/dev/vda`, `/dev/vdb`, … in this order.
    pub(crate) drives: Vec<Drive>,
    /// `eth0`, `eth1`, … in this order.
    pub(crate) nics: Vec<Nic>,
    /// Gets what the guest writes to `/dev/ttyS0`: kernel messages and PID 1's output. The file is
    /// truncated at the start.
    pub(crate) console: PathBuf,
    /// Gets what the guest writes to `/dev/ttyS1`, free of kernel messages: results for a program
    /// to read. The file is truncated at the start.
    pub(crate) report: Option<PathBuf>,
    /// QEMU is killed after this time, whatever the guest does.
    pub(crate) time_limit: Duration,
}

/// A virtio block device.
#[derive(Clone, Debug)]
pub(crate) struct Drive {
    /// A file of this machine.
    pub(crate) path: PathBuf,
    /// Its format.
    pub(crate) format: DriveFormat,
    /// The guest cannot write to it, and several machines may share it.
    pub(crate) read_only: bool,
}

/// How the file of a drive is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DriveFormat {
    /// The bytes as the guest sees them.
    Raw,
    /// With a backing file, mostly: see [`overlay`].
    Qcow2,
}

/// A virtio network device.
#[derive(Clone, Debug)]
pub(crate) enum Nic {
    /// QEMU's user networking: the guest is 10.0.2.15/24, this machine 10.0.2.2, and nothing else
    /// is reachable. Each pair forwards TCP 127.0.0.1:host to that port of the guest.
    User {
        /// (port of this machine, port of the guest)
        forwards: Vec<(u16, u16)>,
    },
    /// A cable to another machine on this host: Ethernet frames in UDP datagrams on loopback. The
    /// other machine has the two ports the other way round.
    Cable {
        /// UDP port of this end.
        local: u16,
        /// UDP port of the other end.
        remote: u16,
        /// Distinct for every device on one cable network.
        mac: String,
    },
}

impl Machine {
    /// A machine with 2 CPUs, 1 GiB, no drives and no network, that writes its console to `console`.
    pub(crate) fn new(
        name: &str,
        kernel: &Path,
        initrd: &Path,
        console: &Path,
        time_limit: Duration,
    ) -> Self {
        Self {
            name: name.to_owned(),
            kernel: kernel.to_owned(),
            initrd: initrd.to_owned(),
            append: String::new(),
            cpus: 2,
            memory_mib: 1024,
            drives: Vec::new(),
            nics: Vec::new(),
            console: console.to_owned(),
            report: None,
            time_limit,
        }
    }

    /// Starts it as a child that dies with the returned handle or the calling thread, or at the latest
    /// at its time limit.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub(crate) fn spawn(&self) -> Result<Vm> {
        let machine = self.command()?;
        // The kernel tells it when this program, or the thread that called this, is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(machine.get_program())
            .args(machine.get_args())
            // The last option counts.
            .args(["-monitor", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start QEMU")?;
        Ok(Vm {
            child,
            name: self.name.clone(),
            console: self.console.clone(),
            deadline: Instant::now() + self.time_limit,
        })
    }

    /// The command that starts it, for a caller that detaches it. Its process is `timeout`, which
    /// passes SIGTERM on to QEMU and kills it at the time limit.
    ///
    /// # Errors
    /// If the console or report file cannot be made, or there is no QEMU.
    pub(crate) fn command(&self) -> Result<Command> {
        for file in [Some(&self.console), self.report.as_ref()]
            .into_iter()
            .flatten()
        {
            if let Some(parent) = file.parent() {
                fs::create_dir_all(parent)
                    .with_context(|| format!("failed to make {}", parent.display()))?;
            }
            fs::write(file, "").with_context(|| format!("failed to write {}", file.display()))?;
        }
        let qemu = setup::qemu::ensure()?.system();
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "--kill-after=5"])
            .arg(self.time_limit.as_secs().max(1).to_string())
            .arg(qemu.get_program())
            .args(qemu.get_args())
            .args(self.arguments());
        Ok(command)
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut add = |option: &str, value: String| {
            args.push(option.into());
            args.push(value.into());
        };
        add("-name", self.name.clone());
        // With cmpxchg16b, QEMU 7.2 double-faulted in the guest kernel's allocator; nothing here needs it.
        add("-cpu", "max,-cx16".to_owned());
        add("-accel", "tcg,thread=multi".to_owned());
        add("-smp", self.cpus.to_string());
        add("-m", format!("{}M", self.memory_mib));
        add("-display", "none".to_owned());
        add("-monitor", "none".to_owned());
        add("-kernel", self.kernel.display().to_string());
        add("-initrd", self.initrd.display().to_string());
        add(
            "-append",
            format!(
                "console=ttyS0 panic=-1 quiet {PANIC_ON_NMI} {}",
                self.append
            )
            .trim()
            .to_owned(),
        );
        add("-serial", format!("file:{}", self.console.display()));
        if let Some(report) = &self.report {
            add("-serial", format!("file:{}", report.display()));
        }
        for (index, drive) in self.drives.iter().enumerate() {
            let format = match drive.format {
                DriveFormat::Raw => "raw",
                DriveFormat::Qcow2 => "qcow2",
            };
            let read_only = if drive.read_only { ",readonly=on" } else { "" };
            add(
                "-drive",
                format!(
                    "file={},if=none,id=drive{index},format={format},cache=unsafe{read_only}",
                    // A comma starts the next option of -drive; doubled, it is a comma.
                    drive.path.display().to_string().replace(',', ",,"),
                ),
            );
            add("-device", format!("virtio-blk-pci,drive=drive{index}"));
        }
        for (index, nic) in self.nics.iter().enumerate() {
            match nic {
                Nic::User { forwards } => {
                    let mut netdev = format!("user,id=net{index},ipv6=off");
                    for (host, guest) in forwards {
                        netdev.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
                    }
                    add("-netdev", netdev);
                    add(
                        "-device",
                        format!("virtio-net-pci,netdev=net{index},romfile="),
                    );
                }
                Nic::Cable { local, remote, mac } => {
                    add(
                        "-netdev",
                        format!(
                            "dgram,id=net{index},local.type=inet,local.host=127.0.0.1,local.port={local},\
                             remote.type=inet,remote.host=127.0.0.1,remote.port={remote}"
                        ),
                    );
                    add(
                        "-device",
                        format!("virtio-net-pci,netdev=net{index},mac={mac},romfile="),
                    );
                }
            }
        }
        if self.nics.is_empty() {
            add("-nic", "none".to_owned());
        }
        args.push("-no-reboot".into());
        args
    }
}

/// A running machine; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Child,
    name: String,
    console: PathBuf,
    deadline: Instant,
}

impl Vm {
    /// False once the guest has powered off (or rebooted, or panicked: read the console).
    ///
    /// # Errors
    /// If the time limit came first, or QEMU failed: then with the end of the console.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        let Some(status) = self.child.try_wait().context("failed to wait for QEMU")? else {
            // `timeout` ends it on time; this is for a `timeout` that was killed or stopped.
            if Instant::now() > self.deadline + Duration::from_secs(10) {
                self.kill();
                bail!(
                    "VM {} was still there after its time limit; {}",
                    self.name,
                    self.console_end()
                );
            }
            return Ok(true);
        };
        match status.code() {
            Some(0) => Ok(false),
            Some(124 | 137) => {
                bail!(
                    "VM {} reached its time limit; {}",
                    self.name,
                    self.console_end()
                )
            }
            _ => {
                let mut message = String::new();
                if let Some(stderr) = &mut self.child.stderr {
                    let _partial = stderr.read_to_string(&mut message);
                }
                bail!(
                    "VM {}: QEMU ended with {status}: {}; {}",
                    self.name,
                    message.trim(),
                    self.console_end()
                )
            }
        }
    }

    /// Ends a machine that hangs, and leaves in its console where its CPUs were.
    ///
    /// # Errors
    /// If it could not be asked; it is ended all the same.
    pub(crate) fn end_hung(&mut self) -> Result<()> {
        let asked = self.last_words();
        self.kill();
        let mut answers = String::new();
        if let (Ok(()), Some(mut stdout)) = (&asked, self.child.stdout.take()) {
            stdout.read_to_string(&mut answers)?;
        }
        let mut console = OpenOptions::new().append(true).open(&self.console)?;
        console.write_all(answers.as_bytes())?;
        asked
    }

    fn last_words(&mut self) -> Result<()> {
        let monitor = self.child.stdin.as_mut().context("no monitor")?;
        for (question, time) in LAST_WORDS {
            writeln!(monitor, "{question}").context("failed to ask the monitor")?;
            std::thread::sleep(time);
        }
        Ok(())
    }

    /// Ends the machine at once.
    pub(crate) fn kill(&mut self) {
        // SIGTERM, for `timeout` passes that on to QEMU; a SIGKILL would leave QEMU alone.
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        if let Ok(None) = self.child.try_wait() {
            let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _status = self.child.wait();
        }
    }

    fn console_end(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines
            .split_at(lines.len().saturating_sub(LINES_IN_ERROR))
            .1
            .join("\n  ");
        format!(
            "the end of its console ({}):\n  {end}",
            self.console.display()
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes a qcow2 file at `path` that holds only the changes to the raw image `base`.
///
/// # Errors
/// If `qemu-img` fails.
pub(crate) fn overlay(base: &Path, path: &Path) -> Result<Drive> {
    step::output(
        setup::qemu::ensure()?
            .img()
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(base)
            .arg(path),
    )?;
    Ok(Drive {
        path: path.to_owned(),
        format: DriveFormat::Qcow2,
        read_only: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_every_drive_and_network_device_in_order() {
        let mut machine = Machine::new(
            "test",
            Path::new("/k"),
            Path::new("/i"),
            Path::new("/c"),
            Duration::from_secs(1),
        );
        machine.drives = vec![
            Drive {
                path: "/a,b".into(),
                format: DriveFormat::Qcow2,
                read_only: false,
            },
            Drive {
                path: "/c".into(),
                format: DriveFormat::Raw,
                read_only: true,
            },
        ];
        machine.nics = vec![
            Nic::User {
                forwards: vec![(2200, 22)],
            },
            Nic::Cable {
                local: 1,
                remote: 2,
                mac: "52:54:00:00:00:01".into(),
            },
        ];
        let args: Vec<String> = machine
            .arguments()
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect();
        for expected in [
            "file=/a,,b,if=none,id=drive0,format=qcow2,cache=unsafe",
            "file=/c,if=none,id=drive1,format=raw,cache=unsafe,readonly=on",
            "user,id=net0,ipv6=off,hostfwd=tcp:127.0.0.1:2200-:22",
            "virtio-net-pci,netdev=net1,mac=52:54:00:00:00:01,romfile=",
            "max,-cx16",
        ] {
            assert!(
                args.iter().any(|arg| arg == expected),
                "{expected} is not in {args:?}"
            );
        }
    }

    #[test]
    fn a_machine_without_network_devices_has_none() {
        let machine = Machine::new(
            "t",
            Path::new("k"),
            Path::new("i"),
            Path::new("c"),
            Duration::ZERO,
        );
        let args = machine.arguments();
        assert!(args.windows(2).any(|pair| pair == ["-nic", "none"]));
    }
}
