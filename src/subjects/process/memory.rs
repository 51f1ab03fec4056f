//! Tensors of questions in memory that a command shares (`docs/PROTOCOL.md`, shared memory): a file without a name, which the
//! command inherits and maps, so that keys and values need not go through a pipe. Only Linux has it, and only commands that
//! declare it get it; anything that cannot be written there travels in the frame as ever.

use std::fs::File;
use std::io;

use ndarray::{ArrayView, IxDyn};
use serde_json::{Map, Value, json};

use super::messages::KEY;
use crate::algorithm::Storage;
use crate::cases::tensors::Writer;

/// Every tensor begins at a multiple of so many bytes.
const ALIGNMENT: u64 = 64;

/// A file in memory. It grows with the largest question and never shrinks, as a command may have mapped it.
pub(super) struct Memory {
    file: File,
}

impl Memory {
    /// An empty one; `None` where the system has none.
    #[cfg(target_os = "linux")]
    pub(super) fn create() -> Option<Self> {
        use rustix::fs::{MemfdFlags, memfd_create};
        let file = memfd_create("doublecheck", MemfdFlags::CLOEXEC).ok()?;
        Some(Self { file: file.into() })
    }

    /// Not on this system.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn create() -> Option<Self> {
        None
    }

    /// Its number here, and in every child that is started by [`Memory::inherited`].
    pub(super) fn number(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&self.file)
    }

    /// Starts a child that inherits it. No other child may be started meanwhile. Errors: those of the start.
    pub(super) fn inherited<T>(&self, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        use rustix::io::{FdFlags, fcntl_setfd};
        fcntl_setfd(&self.file, FdFlags::empty())?;
        let started = start();
        fcntl_setfd(&self.file, FdFlags::CLOEXEC)?;
        started
    }

    /// Writes numbers from some byte on, on all cores.
    fn write<const N: usize>(
        &self,
        numbers: &[f32],
        first: u64,
        bytes: fn(f32) -> [u8; N],
    ) -> io::Result<()> {
        use std::os::unix::fs::FileExt;

        use rayon::prelude::*;
        const PIECE: usize = 1 << 15;
        numbers.par_chunks(PIECE).enumerate().try_for_each(|(index, piece)| {
            let mut buffer = vec![0; N * piece.len()];
            let (places, _) = buffer.as_chunks_mut::<N>();
            places.iter_mut().zip(piece).for_each(|(place, &x)| *place = bytes(x));
            self.file.write_all_at(&buffer, first + (index * PIECE * N) as u64)
        })
    }
}

/// A question and its tensors, which are in the frame or in shared memory.
pub(super) struct Question<'a> {
    writer: Writer,
    memory: Option<&'a Memory>,
    /// As a header of safetensors has them, with offsets in the shared memory.
    shared: Map<String, Value>,
    end: u64,
}

impl<'a> Question<'a> {
    /// Without tensors yet; they go to `memory` where there is one.
    pub(super) fn new(memory: Option<&'a Memory>) -> Self {
        Self { writer: Writer::default(), memory, shared: Map::new(), end: 0 }
    }

    /// Adds numbers of a type.
    pub(super) fn floats(&mut self, name: &str, storage: Storage, values: ArrayView<f32, IxDyn>) {
        if self.share(name, storage, &values).is_none() {
            self.writer.floats(name, storage, values);
        }
    }

    /// Writes numbers to shared memory; `None` where that cannot be.
    fn share(&mut self, name: &str, storage: Storage, values: &ArrayView<f32, IxDyn>) -> Option<()> {
        let (memory, numbers) = (self.memory?, values.as_slice()?);
        let first = self.end.next_multiple_of(ALIGNMENT);
        let (dtype, size, written) = match storage {
            Storage::F32 => ("F32", 4, memory.write(numbers, first, f32::to_le_bytes)),
            Storage::F16 => {
                ("F16", 2, memory.write(numbers, first, |x| half::f16::from_f32(x).to_le_bytes()))
            }
            Storage::Bf16 => {
                ("BF16", 2, memory.write(numbers, first, |x| half::bf16::from_f32(x).to_le_bytes()))
            }
        };
        written.ok()?;
        self.end = first + size * numbers.len() as u64;
        let entry = json!({"dtype": dtype, "shape": values.shape(), "data_offsets": [first, self.end]});
        self.shared.insert(name.to_owned(), entry);
        Some(())
    }

    /// Adds integers to the frame: they are few.
    pub(super) fn integers(&mut self, name: &str, shape: &[usize], numbers: impl Iterator<Item = i32>) {
        self.writer.tensor(name, "I32", shape, numbers.flat_map(i32::to_le_bytes).collect());
    }

    /// The frame with a message, which says what is in shared memory.
    pub(super) fn frame(mut self, mut message: Value) -> Vec<u8> {
        if !self.shared.is_empty() {
            message["shared"] = Value::Object(self.shared);
        }
        self.writer.metadata(KEY, message.to_string());
        self.writer.frame()
    }
}
