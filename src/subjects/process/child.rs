//! A command running beside the suite, seen as frames: a question is a frame written to it, an answer a frame
//! read from it in time. Threads own its three streams, so that a command that reads nothing, writes without
//! end or falls silent cannot stop the suite: frames wait in a channel that holds one, only frames short
//! enough are read, standard error is kept up to its last 8 KiB. Ending a child ends everything it started,
//! what left its process group included.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child as OsChild, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::memory::Memory;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// A variable in the environment of every process that a child starts, by which all of them can be found again.
const MARKER: &str = "DOUBLECHECK_RUN";

/// How much of standard error is kept, in bytes.
const TAIL: usize = 8 << 10;

/// How often a silent child is polled.
const LOOK: Duration = Duration::from_millis(20);

/// How long a child that closed its output may take to end, and an ended child's last words to arrive.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Process groups and markers of the children that run, in case the suite itself is told to stop.
static RUNNING: Mutex<Vec<(Pid, String)>> = Mutex::new(Vec::new());

/// Ends all children and what they started, without reaping them: for a suite that is about to end. The list stays
/// locked, so that until then no other child starts and these ends are not reported as findings.
pub(super) fn end_all() {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    for (pid, marker) in running.iter() {
        let _ = kill_process_group(*pid, Signal::KILL);
        escaped::end(marker);
    }
    std::mem::forget(running);
}

/// A child process and its streams.
pub(super) struct Child {
    /// `None` once it was reaped.
    process: Option<OsChild>,
    pid: Pid,
    marker: String,
    /// `None` once its input is to be closed.
    questions: Option<Sender<Vec<u8>>>,
    events: Receiver<Event>,
    reading: Arc<Reading>,
    tail: Tail,
    tail_complete: Receiver<()>,
}

/// What the thread that reads standard output reports.
enum Event {
    Frame(Vec<u8>),
    /// The end of standard output, in words where it came inside a frame.
    End(Option<String>),
    /// Something other than a frame, in words; nothing is read after it.
    Wrong(String),
}

/// What the asking and the reading thread share.
struct Reading {
    /// The most bytes that the next frame may have.
    limit: AtomicU64,
    /// The bytes of the frame that is being read, 0 between frames.
    unfinished: AtomicU64,
}

/// The end of a child's standard error.
#[derive(Clone, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(TAIL);
        kept.drain(..surplus);
    }

    /// As text; bytes that are not UTF-8 are replaced.
    pub(super) fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (a, b) = kept.as_slices();
        String::from_utf8_lossy(&[a, b].concat()).into_owned()
    }
}

impl Child {
    /// Starts `sh -c command`, whose first frame may have `limit` bytes; it inherits the memory that may be shared. Errors: those
    /// of starting a process.
    pub(super) fn start(command: &str, limit: u64, memory: Option<&Memory>) -> io::Result<Self> {
        let marker = marker();
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = Command::new("sh");
        start.arg("-c").arg(command).env(MARKER, &marker).process_group(0);
        start.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = match memory {
            Some(memory) => memory.inherited(|| start.spawn())?,
            None => start.spawn()?,
        };
        let pid = Pid::from_child(&process);
        running.push((pid, marker.clone()));
        drop(running);
        let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(io::Error::other("no pipes to the command"));
        };
        let (questions, asked) = mpsc::channel();
        thread::spawn(move || write_questions(stdin, asked));
        let (found, events) = mpsc::sync_channel(1);
        let reading = Arc::new(Reading { limit: AtomicU64::new(limit), unfinished: AtomicU64::new(0) });
        let shared = reading.clone();
        thread::spawn(move || read_frames(stdout, &shared, &found));
        let (tail, (complete, tail_complete)) = (Tail::default(), mpsc::channel());
        let kept = tail.clone();
        thread::spawn(move || keep_tail(stderr, &kept, complete));
        let (process, questions) = (Some(process), Some(questions));
        Ok(Self { process, pid, marker, questions, events, reading, tail, tail_complete })
    }

    /// The end of its standard error.
    pub(super) fn tail(&self) -> Tail {
        self.tail.clone()
    }

    /// The frame that answers a frame, of at most `limit` bytes, without its length. Errors: a sentence,
    /// after which the child is of no use.
    pub(super) fn ask(&self, frame: Vec<u8>, limit: u64, timeout: Duration) -> Result<Vec<u8>, String> {
        self.reading.limit.store(limit, Ordering::SeqCst);
        if let Some(questions) = &self.questions {
            // Where the writing thread has gone the child has closed its input; the reading side says why.
            let _ = questions.send(frame);
        }
        let asked = Instant::now();
        loop {
            let left = timeout.saturating_sub(asked.elapsed());
            match self.events.recv_timeout(left.min(LOOK)) {
                Ok(event) => return self.answer(event),
                Err(RecvTimeoutError::Disconnected) => return self.answer(Event::End(None)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(self.silence(timeout)),
                // Something it started may keep its output open.
                Err(RecvTimeoutError::Timeout) if has_ended(self.pid) => {
                    let event = self.events.recv_timeout(LAST_WORDS);
                    return self.answer(event.unwrap_or(Event::End(None)));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn answer(&self, event: Event) -> Result<Vec<u8>, String> {
        match event {
            Event::Frame(frame) => Ok(frame),
            Event::Wrong(sentence) => Err(sentence),
            Event::End(inside) => {
                let ended = wait_until(LAST_WORDS, || has_ended(self.pid));
                let no_answer = if ended {
                    "the command ended without an answer"
                } else {
                    "the command closed its standard output without an answer"
                };
                Err(inside.unwrap_or_else(|| no_answer.to_owned()))
            }
        }
    }

    fn silence(&self, timeout: Duration) -> String {
        match self.reading.unfinished.load(Ordering::SeqCst) {
            0 => format!("no answer within {timeout:?}"),
            length => {
                format!("no answer within {timeout:?}: found the beginning of a frame of {length} bytes")
            }
        }
    }

    /// Says goodbye, closes its input and gives it `patience` to end by itself before it is ended.
    pub(super) fn say_goodbye(mut self, bye: Vec<u8>, patience: Duration) {
        if let Some(questions) = self.questions.take() {
            let _ = questions.send(bye);
        }
        let pid = self.pid;
        wait_until(patience, || has_ended(pid));
        self.end();
    }

    /// Ends it and everything it started. Returns its exit status if it had ended by itself.
    pub(super) fn end(&mut self) -> Option<ExitStatus> {
        let process = self.process.take()?;
        let by_itself = has_ended(self.pid);
        self.questions = None;
        // Before it is reaped, so that its id cannot be another process's by now. Fails where nothing is left.
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|(pid, _)| *pid != self.pid);
        let _ = kill_process_group(self.pid, Signal::KILL);
        let status = reap(process);
        escaped::end(&self.marker);
        // Everything that could write to it is gone, so its end is near.
        let _ = self.tail_complete.recv_timeout(LAST_WORDS);
        status.filter(|_| by_itself)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether a child has ended; it is not reaped, so that its process group still names what it started.
fn has_ended(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(pid), options), Ok(None))
}

/// Reaps a process that was ended; one that a driver holds back is left to a thread.
fn reap(mut process: OsChild) -> Option<ExitStatus> {
    let mut status = None;
    wait_until(Duration::from_secs(2), || match process.try_wait() {
        Ok(found) => {
            status = found;
            status.is_some()
        }
        Err(_) => true,
    });
    if status.is_none() {
        thread::spawn(move || process.wait());
    }
    status
}

fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut pause = Duration::from_micros(100);
    while !condition() {
        if start.elapsed() >= limit {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    true
}

/// A marker that no other child has, of this run or another.
#[allow(clippy::disallowed_methods, reason = "a number that did not occur before, not a duration")]
fn marker() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let counter = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{counter}-{}", std::process::id(), since_epoch.as_nanos())
}

/// Processes that left their group, known by the marker in their environment.
#[cfg(target_os = "linux")]
mod escaped {
    use std::time::Duration;

    use rustix::process::{Pid, Signal, kill_process};

    /// A process may start another while it is being ended.
    const ROUNDS: usize = 5;

    pub(super) fn end(marker: &str) {
        let entry = format!("{}={marker}", super::MARKER);
        for _ in 0..ROUNDS {
            let found = marked(&entry);
            if found.is_empty() {
                return;
            }
            for pid in found {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn marked(entry: &str) -> Vec<Pid> {
        let Ok(processes) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        let number = |name: &std::ffi::OsStr| name.to_str().and_then(|name| name.parse().ok());
        let pids = processes.flatten().filter_map(|process| number(&process.file_name()));
        pids.filter(|pid| has_entry(*pid, entry)).filter_map(Pid::from_raw).collect()
    }

    fn has_entry(pid: i32, entry: &str) -> bool {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes())
    }
}

/// Elsewhere only the process group is known.
#[cfg(not(target_os = "linux"))]
mod escaped {
    pub(super) fn end(_marker: &str) {}
}

/// Writes questions until there are no more, or the child stops reading.
fn write_questions(mut stdin: ChildStdin, questions: Receiver<Vec<u8>>) {
    for frame in questions {
        if stdin.write_all(&frame).is_err() {
            return;
        }
    }
}

fn keep_tail(mut stderr: impl Read, tail: &Tail, _complete: Sender<()>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut buffer) {
        tail.push(&buffer[..length]);
    }
}

/// Reads frames until the output ends, holds something other than a frame, or nobody receives them.
fn read_frames(stdout: ChildStdout, reading: &Reading, events: &SyncSender<Event>) {
    let mut stdout = BufReader::with_capacity(1 << 16, stdout);
    loop {
        let event = read_frame(&mut stdout, reading);
        let last = !matches!(event, Event::Frame(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

fn read_frame(stdout: &mut BufReader<ChildStdout>, reading: &Reading) -> Event {
    let mut header = [0; 8];
    match fill(stdout, &mut header) {
        0 => return Event::End(None),
        8 => {}
        length => {
            let text = text(&header[..length]);
            let found = || format!("found {length} bytes at the end of standard output, expected a frame");
            return text.map_or_else(|| Event::End(Some(found())), Event::Wrong);
        }
    }
    let (length, limit) = (u64::from_le_bytes(header), reading.limit.load(Ordering::SeqCst));
    if length > limit {
        let beginning = [&header, stdout.buffer()].concat();
        let long = || format!("found a frame of {length} bytes, expected at most {limit}");
        return Event::Wrong(text(&beginning).unwrap_or_else(long));
    }
    reading.unfinished.store(length, Ordering::SeqCst);
    // The system commits this memory only as it is written to.
    let mut frame = vec![0; length as usize];
    let found = fill(stdout, &mut frame);
    reading.unfinished.store(0, Ordering::SeqCst);
    if found < frame.len() {
        return Event::End(Some(format!("found {found} bytes of a frame of {length} bytes")));
    }
    Event::Frame(frame)
}

/// Fills the buffer as far as there is something to read.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    filled
}

/// The message for something other than a frame that begins with text: a whole line, all there is, or at
/// least eight bytes.
fn text(bytes: &[u8]) -> Option<String> {
    const SHOWN: usize = 60;
    let printable =
        |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x80..);
    let length = bytes.iter().take_while(|byte| printable(byte)).count();
    let has_line = bytes[..length].contains(&b'\n');
    let whole = length == bytes.len();
    let valid = String::from_utf8_lossy(&bytes[..length]);
    if length == 0 || !(has_line || whole || length >= 8) || valid.starts_with('\u{fffd}') {
        return None;
    }
    let shown: String = valid.chars().take(SHOWN).collect();
    let more = if valid.chars().count() > SHOWN { "…" } else { "" };
    Some(format!("found text {:?} on standard output, where only frames may be", shown + more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_told_from_lengths() {
        assert!(text(b"Hello from here").unwrap().contains("\"Hello from here\""));
        assert!(text(b"hi\n\x40\0\0\0\0").unwrap().contains("\"hi\\n"));
        assert!(text("Größe 12".as_bytes()).is_some());
        assert_eq!(text(&[0xff; 8]), None);
        assert_eq!(text(&0x4142_4344u64.to_le_bytes()), None);
        assert!(text(&[b'x'; 100]).unwrap().contains('…'));
    }

    #[test]
    fn only_the_end_of_standard_error_is_kept() {
        let tail = Tail::default();
        (0..10_000).for_each(|line| tail.push(format!("line {line}\n").as_bytes()));
        assert_eq!(tail.text().len(), TAIL);
        assert!(tail.text().ends_with("line 9999\n"));
    }
}
