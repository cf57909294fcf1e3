//! The sending parts of a run: the first on a thread of this process, further ones in processes of their own.
//!
//! Called by `run`. A part that fails ends the run; a child process ends with its parent, since its orders end.

use super::order::{Order, PartConfig, Told};
use super::part::{ORDERS_MAX, Part, TOLD_MAX};
use crate::engine::OnSent;
use anyhow::{Context, Result, bail};
use mio::Waker;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest line between the processes of a run, in bytes: the result of 131,072 devices.
const LINE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Who sends, and who tells: the part's number stands beside what it told.
pub(crate) type Telling = (usize, Told);

enum Link {
    Thread { orders: SyncSender<Order>, waker: Arc<Waker>, thread: Option<JoinHandle<()>> },
    Process { orders: ChildStdin, child: Child },
}

/// All parts.
pub(crate) struct Parts {
    links: Vec<Link>,
    told: Receiver<Telling>,
}

impl Parts {
    /// Starts one part a configuration; `on_sent` hears of the first one's watched devices.
    ///
    /// # Errors
    /// A thread or process cannot be started.
    pub(crate) fn start(configs: Vec<PartConfig>, on_sent: Option<OnSent>) -> Result<Self> {
        let (sender, told) = sync_channel(TOLD_MAX);
        let mut on_sent = on_sent;
        let mut links = Vec::new();
        for (number, config) in configs.into_iter().enumerate() {
            let link = if number == 0 {
                thread_part(config, sender.clone(), on_sent.take())?
            } else {
                process_part(number, &config, sender.clone())?
            };
            links.push(link);
        }
        Ok(Self { links, told })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.links.len()
    }

    /// Processes besides this one.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let pid = |link: &Link| match link {
            Link::Thread { .. } => None,
            Link::Process { child, .. } => Some(child.id()),
        };
        self.links.iter().filter_map(pid).collect()
    }

    /// Tells every part the same.
    ///
    /// # Errors
    /// A part has ended.
    pub(crate) fn order(&mut self, order: &Order) -> Result<()> {
        self.order_shared(|_| order.clone())
    }

    /// Tells every part its own order.
    ///
    /// # Errors
    /// A part has ended.
    pub(crate) fn order_shared(&mut self, order: impl Fn(usize) -> Order) -> Result<()> {
        for (number, link) in self.links.iter_mut().enumerate() {
            match link {
                Link::Thread { orders, waker, .. } => {
                    orders.send(order(number)).ok().context("the sending thread has ended")?;
                    waker.wake().context("cannot wake the sending thread")?;
                }
                Link::Process { orders, .. } => {
                    let line = serde_json::to_string(&order(number)).context("an order has no JSON")?;
                    writeln!(orders, "{line}")
                        .and_then(|()| orders.flush())
                        .with_context(|| format!("generator process {number} has ended"))?;
                }
            }
        }
        Ok(())
    }

    /// What a part tells next; none in time.
    ///
    /// # Errors
    /// A part failed.
    pub(crate) fn hear(&self, timeout: Duration) -> Result<Option<Telling>> {
        match self.told.recv_timeout(timeout) {
            Ok((number, Told::Failed { why })) => bail!("generator {number}: {why}"),
            Ok(telling) => Ok(Some(telling)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("every generator has ended"),
        }
    }

    /// Ends all parts.
    pub(crate) fn quit(&mut self) {
        // One that has ended already needs no telling.
        let _ = self.order(&Order::Quit);
        for link in &mut self.links {
            match link {
                Link::Thread { thread, .. } => {
                    if let Some(thread) = thread.take() {
                        let _ = thread.join();
                    }
                }
                Link::Process { child, .. } => {
                    let _ = child.wait();
                }
            }
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        for link in &mut self.links {
            if let Link::Process { child, .. } = link {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn thread_part(config: PartConfig, told: SyncSender<Telling>, on_sent: Option<OnSent>) -> Result<Link> {
    let (orders, heard) = sync_channel(ORDERS_MAX);
    let (part, waker) = Part::new(config, heard, (0, told), on_sent)?;
    let thread = std::thread::Builder::new()
        .name("devices".to_owned())
        .spawn(move || part.run())
        .context("cannot start the sending thread")?;
    Ok(Link::Thread { orders, waker, thread: Some(thread) })
}

fn process_part(number: usize, config: &PartConfig, told: SyncSender<Telling>) -> Result<Link> {
    let own = std::env::current_exe().context("cannot find this program's own binary")?;
    let mut command = Command::new(own);
    command.arg("run-part").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start a generator process")?;
    let mut orders = child.stdin.take().context("the process has no input")?;
    let output = child.stdout.take().context("the process has no output")?;
    let line = serde_json::to_string(config).context("the configuration has no JSON")?;
    writeln!(orders, "{line}").context("the generator process has ended")?;
    let read = move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let heard = serde_json::from_str(&line);
            let heard =
                heard.unwrap_or_else(|error| Told::Failed { why: format!("a line that is none: {error}") });
            if told.send((number, heard)).is_err() {
                return;
            }
        }
        // Its end, unless it was told to end; then nobody listens.
        let _ = told.send((number, Told::Failed { why: "the process has ended".to_owned() }));
    };
    std::thread::Builder::new().name("hear".to_owned()).spawn(read).context("cannot start a thread")?;
    Ok(Link::Process { orders, child })
}

/// A generator process: its configuration and orders on standard input, what it tells on standard output.
///
/// # Errors
/// No configuration comes, or the devices cannot be made.
pub(crate) fn run_part() -> Result<()> {
    crate::timer::raise_open_files().context("cannot read the limit of open files")?;
    let mut input = BufReader::new(std::io::stdin());
    let line = read_line(&mut input)?.context("no configuration came")?;
    let config: PartConfig = serde_json::from_str(&line).context("the configuration is no JSON of ours")?;
    let (orders, heard) = sync_channel(ORDERS_MAX);
    let (told, telling) = sync_channel(TOLD_MAX);
    let (part, waker) = Part::new(config, heard, (0, told), None)?;
    let listen = move || {
        while let Ok(Some(line)) = read_line(&mut input) {
            let Ok(order) = serde_json::from_str(&line) else { return };
            if orders.send(order).is_err() || waker.wake().is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("orders".to_owned()).spawn(listen).context("cannot start a thread")?;
    let devices = std::thread::Builder::new()
        .name("devices".to_owned())
        .spawn(move || part.run())
        .context("cannot start the sending thread")?;
    let mut output = std::io::stdout().lock();
    while let Ok((_, told)) = telling.recv() {
        let line = serde_json::to_string(&told).context("a telling has no JSON")?;
        writeln!(output, "{line}").and_then(|()| output.flush()).context("the run's lead has ended")?;
    }
    devices.join().ok().context("the sending thread panicked")
}

fn read_line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = String::new();
    let mut limited = std::io::Read::take(input, LINE_BYTES_MAX);
    let bytes = limited.read_line(&mut line).context("cannot read an order")?;
    if bytes as u64 == LINE_BYTES_MAX {
        bail!("an order of more than {LINE_BYTES_MAX} bytes");
    }
    Ok((bytes > 0).then_some(line))
}
