//! The vDSO of programs that run already: its functions that read a clock are replaced by the system
//! call, so that the time can be moved behind it. Which time that is, and until when, is said by the
//! rule alone: without one, what is put here only makes the right time slower.
//!
//! The original bytes need no journal: every 64-bit program of a kernel has the same vDSO, and the
//! agent has its own.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::arch;
use super::stopped::{StopError, Stopped};

/// How often threads are let run on and stopped again because one was within the bytes.
const TRIES: u32 = 20;

/// A function and what is put in place of its first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Patch {
    /// From the start of the vDSO.
    offset: u64,
    original: Vec<u8>,
    stub: &'static [u8],
}

/// What a program's vDSO is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// System calls.
    Stubs,
    /// What the kernel gave it.
    Original,
}

/// What was found or done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It was so already.
    Nothing,
    /// It was changed.
    Changed,
    /// The program is gone, or has no vDSO.
    Absent,
}

/// Why a program's vDSO was left as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum VdsoError {
    /// Never possible.
    #[error("{0}")]
    Refused(String),
    /// The kernel lets nobody at the program, by its settings or ours.
    #[error("{0}")]
    Locked(String),
    /// Not now.
    #[error("{0}")]
    Busy(String),
}

/// Functions of this kernel's vDSO.
pub(super) struct Vdso {
    patches: Vec<Patch>,
}

impl Vdso {
    /// From the agent's own.
    ///
    /// # Errors
    /// When there is none, or it is not as expected: in words for a user.
    pub(super) fn of_this_kernel() -> Result<Self, String> {
        let own = Path::new("/proc/self");
        let image = find(own)
            .and_then(|range| {
                let range = range.ok_or_else(|| io::Error::other("this kernel maps none"))?;
                let mut image = vec![0; (range.end - range.start) as usize];
                File::open(own.join("mem"))?.read_exact_at(&mut image, range.start)?;
                Ok(image)
            })
            .map_err(|error| format!("failed to read the vDSO: {error}"))?;
        Self::parse(&image).ok_or_else(|| {
            "the vDSO of this kernel has a form that this agent does not know".to_owned()
        })
    }

    /// `None` if it is no 64-bit ELF image, or a function is not there or too short.
    fn parse(image: &[u8]) -> Option<Self> {
        const SHT_DYNSYM: u32 = 11;
        let half = |at: usize| {
            Some(u16::from_ne_bytes(
                image.get(at..at.checked_add(2)?)?.try_into().ok()?,
            ))
        };
        let word = |at: usize| {
            Some(u32::from_ne_bytes(
                image.get(at..at.checked_add(4)?)?.try_into().ok()?,
            ))
        };
        let long = |at: usize| {
            let bytes = image.get(at..at.checked_add(8)?)?;
            usize::try_from(u64::from_ne_bytes(bytes.try_into().ok()?)).ok()
        };
        if !is_64_bit(image) {
            return None;
        }
        // e_shoff, e_shentsize, e_shnum; then of each section sh_type, sh_offset, sh_size, sh_link.
        let (first, size, count) = (long(0x28)?, usize::from(half(0x3a)?), half(0x3c)?);
        let section = |index: usize| first.checked_add(size.checked_mul(index)?);
        let symbols = (0..usize::from(count))
            .filter_map(section)
            .find(|&at| at.checked_add(4).and_then(word) == Some(SHT_DYNSYM))?;
        let strings = long(section(word(symbols + 0x28)? as usize)?.checked_add(0x18)?)?;
        let (start, length) = (long(symbols + 0x18)?, long(symbols + 0x20)?);
        let end = start.checked_add(length)?.min(image.len());
        // Of each symbol: st_name and st_value.
        let symbols: Vec<(usize, usize)> = (start..end)
            .step_by(24)
            .filter_map(|at| Some((strings.checked_add(word(at)? as usize)?, long(at + 8)?)))
            .collect();
        let function = |(name, stub): (&str, &'static [u8])| {
            let is_named = |at: usize| {
                let rest = image.get(at..)?;
                Some(rest.split(|&byte| byte == 0).next()? == name.as_bytes())
            };
            let (_, offset) = symbols.iter().find(|(at, _)| is_named(*at) == Some(true))?;
            let next = symbols.iter().map(|(_, value)| *value);
            let next = next.filter(|value| value > offset).min();
            let room = next.unwrap_or(image.len()) - offset;
            (room >= stub.len()).then_some(Patch {
                offset: *offset as u64,
                original: image.get(*offset..offset + stub.len())?.to_vec(),
                stub,
            })
        };
        let patches = arch::STUBS.into_iter().map(function);
        Some(Self {
            patches: patches.collect::<Option<_>>()?,
        })
    }

    /// What a program's vDSO has; `None` when it is gone or has none.
    ///
    /// # Errors
    /// [`VdsoError`] when it is neither.
    pub(super) fn content(&self, process: &Path) -> Result<Option<Content>, VdsoError> {
        let Some(base) = self.base(process)? else {
            return Ok(None);
        };
        let Ok(memory) = File::open(process.join("mem")) else {
            return Ok(None);
        };
        self.compare(&memory, base)
    }

    /// Gives a program this content. It is stopped for that, for as long as it takes.
    ///
    /// # Errors
    /// [`VdsoError`]; nothing has been changed.
    pub(super) fn give(&self, process: &Path, content: Content) -> Result<Done, VdsoError> {
        match self.content(process)? {
            None => return Ok(Done::Absent),
            Some(found) if found == content => return Ok(Done::Nothing),
            Some(_) => {}
        }
        // A tracer is a thread, and when it ends the kernel lets all go that it has stopped: whatever
        // goes wrong in it leaves nobody stopped.
        std::thread::scope(|scope| {
            let tracer = scope.spawn(|| self.write(process, content));
            tracer
                .join()
                .unwrap_or_else(|_| Err(VdsoError::Busy("the tracer has panicked".to_owned())))
        })
    }

    fn write(&self, process: &Path, content: Content) -> Result<Done, VdsoError> {
        for _ in 0..TRIES {
            let mut stopped = match Stopped::stop(process) {
                Ok(stopped) => stopped,
                Err(StopError::Gone) => return Ok(Done::Absent),
                Err(StopError::Traced(by)) => {
                    return Err(VdsoError::Busy(format!("it is traced by process {by}")));
                }
                Err(StopError::Restless(thread)) => {
                    return Err(VdsoError::Busy(format!(
                        "its thread {thread} does not stop: it waits in the kernel"
                    )));
                }
                Err(StopError::Kernel(error)) => {
                    return Err(VdsoError::Locked(format!("it cannot be stopped: {error}")));
                }
            };
            // It may have become another program meanwhile.
            let Some(base) = self.base(process)? else {
                return Ok(Done::Absent);
            };
            let within = |pointer: u64| {
                self.patches.iter().any(|patch| {
                    let start = base + patch.offset;
                    pointer > start && pointer < start + patch.stub.len() as u64
                })
            };
            if !stopped.leave(process, within) {
                drop(stopped);
                std::thread::yield_now();
                continue;
            }
            let Ok(memory) = File::open(process.join("mem")) else {
                return Ok(Done::Absent);
            };
            return match self.compare(&memory, base)? {
                Some(found) if found != content => self.put(&stopped, base, content),
                Some(_) => Ok(Done::Nothing),
                None => Ok(Done::Absent),
            };
        }
        Err(VdsoError::Busy(
            "its threads are never all outside of the vDSO".to_owned(),
        ))
    }

    fn put(&self, stopped: &Stopped, base: u64, content: Content) -> Result<Done, VdsoError> {
        let bytes = |patch: &Patch, content| match content {
            Content::Stubs => patch.stub.to_vec(),
            Content::Original => patch.original.clone(),
        };
        for (done, patch) in self.patches.iter().enumerate() {
            let result = stopped.write(base + patch.offset, &bytes(patch, content));
            if let Err(error) = result {
                let other = match content {
                    Content::Stubs => Content::Original,
                    Content::Original => Content::Stubs,
                };
                // The one that failed too: a part of it may have been written.
                for patch in &self.patches[..=done] {
                    // What could be written before can be written back.
                    let _ = stopped.write(base + patch.offset, &bytes(patch, other));
                }
                return Err(VdsoError::Locked(format!(
                    "its vDSO cannot be written: {error}"
                )));
            }
        }
        Ok(Done::Changed)
    }

    fn compare(&self, memory: &File, base: u64) -> Result<Option<Content>, VdsoError> {
        let mut header = [0; 5];
        if memory.read_exact_at(&mut header, base).is_err() {
            return Ok(None);
        }
        if !is_64_bit(&header) {
            return Err(VdsoError::Refused(
                "it is a 32-bit program, whose clock cannot be moved".to_owned(),
            ));
        }
        let mut all = [true, true];
        for patch in &self.patches {
            let mut found = vec![0; patch.stub.len()];
            if memory
                .read_exact_at(&mut found, base + patch.offset)
                .is_err()
            {
                return Ok(None);
            }
            all[0] &= found == patch.stub;
            all[1] &= found == patch.original;
        }
        match all {
            [true, _] => Ok(Some(Content::Stubs)),
            [_, true] => Ok(Some(Content::Original)),
            _ => Err(VdsoError::Refused(
                "somebody else has changed its vDSO".to_owned(),
            )),
        }
    }

    fn base(&self, process: &Path) -> Result<Option<u64>, VdsoError> {
        match start(process) {
            Ok(start) => Ok(start),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(VdsoError::Locked(format!(
                    "its memory cannot be looked at: {error}; the agent needs CAP_SYS_PTRACE"
                )))
            }
            Err(_) => Ok(None),
        }
    }
}

/// Where the vDSO of a program begins: as the kernel told it at its start, which is shorter to read than
/// all that is mapped, unless it has been moved since.
fn start(process: &Path) -> io::Result<Option<u64>> {
    if let Some(told) = told(&fs::read(process.join("auxv"))?) {
        let mut magic = [0; 4];
        let memory = File::open(process.join("mem"))?;
        if memory.read_exact_at(&mut magic, told).is_ok() && magic == *b"\x7fELF" {
            return Ok(Some(told));
        }
    }
    Ok(find(process)?.map(|range| range.start))
}

/// The address in an auxiliary vector of a 64-bit program: the kernel's own copy has it also where the
/// program was not told.
fn told(vector: &[u8]) -> Option<u64> {
    // include/uapi/linux/auxvec.h
    const AT_SYSINFO_EHDR: u64 = 33;
    let (words, _) = vector.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs.iter().find_map(|[key, value]| {
        (u64::from_ne_bytes(*key) == AT_SYSINFO_EHDR).then_some(u64::from_ne_bytes(*value))
    })
}

/// Where a program has its vDSO mapped.
fn find(process: &Path) -> io::Result<Option<Range<u64>>> {
    let maps = fs::read_to_string(process.join("maps"))?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"));
    let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
    Ok(range.and_then(|(start, end)| {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(hex(start)?..hex(end)?)
    }))
}

/// Magic and class of an ELF image.
fn is_64_bit(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF\x02")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_of_this_kernels_vdso_are_found() {
        let vdso = Vdso::of_this_kernel().expect("a kernel of our architecture has them");
        assert_eq!(vdso.patches.len(), arch::STUBS.len());
        for (patch, (name, stub)) in vdso.patches.iter().zip(arch::STUBS) {
            assert_eq!(patch.original.len(), stub.len(), "{name}");
            assert_ne!(patch.original, stub, "{name}");
        }
        let own = vdso.content(Path::new("/proc/self"));
        assert_eq!(own.expect("it is ours"), Some(Content::Original));
    }

    #[test]
    fn the_kernel_tells_where_the_vdso_is_mapped() {
        let own = Path::new("/proc/self");
        let vector = fs::read(own.join("auxv")).expect("our own");
        let mapped = find(own).expect("our own").map(|range| range.start);
        assert!(mapped.is_some());
        assert_eq!(told(&vector), mapped);
        assert_eq!(start(own).expect("our own"), mapped);
        for short in [&vector[..0], &vector[..15], &[33, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(told(short), None);
        }
    }

    #[test]
    fn what_is_no_vdso_is_not_read_past() {
        for image in [
            &b""[..],
            b"\x7fELF\x01",
            b"\x7fELF\x02",
            &[b"\x7fELF\x02".as_slice(), &[0xff; 200]].concat(),
            &[b"\x7fELF\x02".as_slice(), &[0; 200]].concat(),
        ] {
            assert!(Vdso::parse(image).is_none());
        }
    }

    #[test]
    fn a_program_that_is_gone_has_no_vdso() {
        let vdso = Vdso::of_this_kernel().expect("there is one");
        let gone = Path::new("/proc/4194305");
        assert_eq!(vdso.content(gone).expect("no error"), None);
        let done = vdso.give(gone, Content::Stubs);
        assert_eq!(done.expect("no error"), Done::Absent);
    }

    /// `sleep` asks no clock; what counts is that its vDSO is changed and put back, and that it goes
    /// on.
    #[test]
    fn a_running_program_gets_stubs_and_its_own_bytes_back() {
        let vdso = Vdso::of_this_kernel().expect("there is one");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("there is sleep");
        let process = Path::new("/proc").join(child.id().to_string());
        // Its parent goes on while the kernel still makes the new program.
        while !matches!(vdso.content(&process), Ok(Some(_))) {
            assert!(matches!(child.try_wait(), Ok(None)), "it has ended");
            std::thread::yield_now();
        }
        let mut done = Vec::new();
        for content in [
            Content::Stubs,
            Content::Stubs,
            Content::Original,
            Content::Original,
        ] {
            done.push(vdso.give(&process, content).ok());
            assert_eq!(vdso.content(&process).ok(), Some(Some(content)));
        }
        let changed = [Done::Changed, Done::Nothing, Done::Changed, Done::Nothing];
        assert_eq!(done, changed.map(Some));
        let status = fs::read_to_string(process.join("status")).expect("it lives");
        assert!(status.contains("TracerPid:\t0"), "{status}");
        assert!(!status.contains("State:\tt"), "{status}");
        child.kill().expect("it lives");
        child.wait().expect("it was killed");
    }
}
