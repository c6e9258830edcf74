//! Where a running program's C library reads the clock. Files of others: nothing in them is believed
//! that is not checked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use object::elf::FileHeader64;
use object::read::elf::ElfFile;
use object::{Endianness, Object, ObjectSegment, ObjectSymbol, ReadCache, ReadRef};

/// The function: of glibc, of musl, and of whoever stands before them (LD_PRELOAD). That of time(2) and
/// gettimeofday(2) in glibc are the vDSO's own.
const NAME: &[u8] = b"clock_gettime";

/// A place for a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// The file as it is mapped, whatever its path is and whether it still has one.
    pub(super) file: PathBuf,
    /// In it, in bytes.
    pub(super) offset: u64,
    /// Its name there, for a user.
    pub(super) name: String,
}

/// Of all files that a program has mapped to be run; none where there is no such function.
///
/// # Errors
/// When the program is gone, or its files cannot be read.
pub(super) fn clock_functions(process: &Path) -> io::Result<Vec<Function>> {
    let maps = fs::read_to_string(process.join("maps"))?;
    let mut seen = BTreeSet::new();
    let mut functions = Vec::new();
    for mapping in maps.lines().filter_map(mapping) {
        if !seen.insert(mapping.inode) {
            continue;
        }
        let file = process.join("map_files").join(mapping.range);
        let opened = match File::open(&file) {
            Ok(opened) => opened,
            // It has been unmapped meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let offsets = offsets(&ReadCache::new(opened));
        functions.extend(offsets.into_iter().map(|offset| Function {
            file: file.clone(),
            offset,
            name: mapping.name.to_owned(),
        }));
    }
    Ok(functions)
}

/// A line of /proc/PID/maps (proc_pid_maps(5)).
struct Mapping<'a> {
    range: &'a str,
    /// Device and number.
    inode: (&'a str, &'a str),
    name: &'a str,
}

/// Of a file, to be run.
fn mapping(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next()?;
    let permissions = fields.next()?;
    let inode = (fields.nth(1)?, fields.next()?);
    let path = fields.next().filter(|path| path.starts_with('/'))?;
    permissions.contains('x').then_some(Mapping {
        range,
        inode,
        name: path.rsplit('/').next().unwrap_or(path),
    })
}

/// Where the function is in a file of ours to run; empty when it is no such file, or has none.
fn offsets<'a, R: ReadRef<'a>>(file: R) -> BTreeSet<u64> {
    let Ok(elf) = ElfFile::<FileHeader64<Endianness>, R>::parse(file) else {
        return BTreeSet::new();
    };
    let in_file = |address: u64| {
        elf.segments().find_map(|segment| {
            let within = address.checked_sub(segment.address())?;
            let (start, size) = segment.file_range();
            (within < size).then(|| start.checked_add(within))?
        })
    };
    elf.dynamic_symbols()
        .chain(elf.symbols())
        .filter(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(NAME))
        .filter_map(|symbol| in_file(symbol.address()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These tests run with the C library of this system.
    #[test]
    fn the_function_of_a_running_program_is_found() {
        let own = clock_functions(Path::new("/proc/self")).expect("it runs");
        let libc = own.iter().find(|function| function.name == "libc.so.6");
        let libc = libc.unwrap_or_else(|| panic!("{own:?}"));
        assert!(libc.offset > 0);
        assert!(libc.file.starts_with("/proc/self/map_files"));
    }

    #[test]
    fn a_line_of_a_file_to_run_is_taken() {
        let line = "7f00-7f10 r-xp 0002 08:01 77   /usr/lib/libc.so.6 (deleted)";
        let found = mapping(line).expect("one");
        assert_eq!((found.range, found.name), ("7f00-7f10", "libc.so.6"));
        assert_eq!(found.inode, ("08:01", "77"));
        for other in [
            "7f00-7f10 rw-p 0002 08:01 77 /usr/lib/libc.so.6",
            "7f00-7f10 r-xp 0000 00:00 0 [vdso]",
            "7f00-7f10 r-xp 0000 00:00 0",
            "",
        ] {
            assert!(mapping(other).is_none(), "{other}");
        }
    }

    #[test]
    fn what_is_no_program_has_no_functions() {
        for file in [&b""[..], b"\x7fELF\x02\x01\x01", &[0xff; 300]] {
            assert!(offsets(file).is_empty());
        }
    }
}
