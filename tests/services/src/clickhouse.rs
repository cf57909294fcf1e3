//! ClickHouse, as the Python package `chdb-core` carries it: the real engine with its HTTP handler.
//!
//! No package registry has the server's own binary. The package's engine starts its listeners on `SYSTEM START LISTEN`
//! and keeps its tables in a directory; what is missing of a server (users in SQL, Keeper) Muster does not need.

use crate::{free_port, python};
use anyhow::{Context as _, Result, bail};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_TIME_MAX: Duration = Duration::from_secs(60);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
const PORT_TRIES: usize = 5;
/// The query keeps the process, and with it the listeners, for ever.
const SERVE: &str = "import sys
from chdb import _chdb
_chdb.query('SYSTEM START LISTEN HTTP; SELECT sleepEachRow(3) FROM system.numbers SETTINGS \
function_sleep_max_microseconds_per_block=0, max_block_size=1, max_execution_time=0 FORMAT Null', 'TabSeparated', \
path=sys.argv[1])
";

/// A running server on a directory of its own.
#[derive(Debug)]
pub struct ClickHouse {
    python: PathBuf,
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl ClickHouse {
    /// Starts a server on an empty directory.
    ///
    /// # Errors
    /// The package cannot be installed, or the server does not start.
    pub fn start() -> Result<Self> {
        let python = python::program("chdb-core", "python")?;
        let dir = tempfile::Builder::new().prefix("muster-clickhouse-").tempdir().context("no directory")?;
        let mut server = Self { python, dir, port: 0, child: None };
        for tried in 1.. {
            server.port = free_port()?;
            match server.start_again() {
                Ok(()) => break,
                Err(error) if tried == PORT_TRIES || !format!("{error:#}").contains("in use") => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        Ok(server)
    }

    /// Starts it on its files and its port, after [`Self::kill`] or [`Self::stop`].
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_again(&mut self) -> Result<()> {
        let dir = self.dir.path();
        let config = format!(
            "<clickhouse><http_port>{}</http_port><listen_host>127.0.0.1</listen_host>\
             <logger><level>warning</level><log>{}</log></logger></clickhouse>",
            self.port,
            dir.join("server.log").display()
        );
        std::fs::write(dir.join("config.xml"), config).context("cannot write config.xml")?;
        let log = dir.join("out.log");
        let output =
            std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL"]).arg(&self.python).args(["-c", SERVE]).arg(dir.join("data"));
        command.current_dir(dir).env("HOME", dir).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        let mut child = command.spawn().context("cannot start ClickHouse")?;
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            if self.ask("SELECT 1").is_ok_and(|answer| answer == "1") {
                break;
            }
            let ended = child.try_wait()?.is_some();
            if ended || Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("ClickHouse does not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child = Some(child);
        Ok(())
    }

    /// Where a database is; Muster makes it.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("http://default@127.0.0.1:{}/{database}", self.port)
    }

    /// Its HTTP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs a statement; gives what it prints as tab-separated text.
    ///
    /// # Errors
    /// The statement's.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String> {
        self.request(&format!("/?database={database}"), sql.as_bytes())
    }

    fn ask(&self, sql: &str) -> Result<String> {
        self.request("/", sql.as_bytes())
    }

    /// Posts a body to a path of the HTTP interface and gives the answer's.
    ///
    /// # Errors
    /// No answer, or one that is not 200.
    pub fn request(&self, path: &str, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("cannot connect")?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        // HTTP/1.0: the answer ends with the connection.
        write!(stream, "POST {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, text) = answer.split_once("\r\n\r\n").context("half an answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        if status != "200" {
            bail!("{status}: {text}");
        }
        Ok(text.trim_end().to_owned())
    }

    /// Ends it as SIGTERM does.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let ended = Command::new("kill").arg(child.id().to_string()).status();
        if !ended.is_ok_and(|status| status.success()) {
            let _ = child.kill();
        }
        child.wait().context("ClickHouse does not end").map(drop)
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().context("cannot kill ClickHouse")?;
        child.wait().context("ClickHouse does not end").map(drop)
    }

    /// Stops its process where it stands: connections stay open and nothing answers, until [`Self::thaw`].
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn freeze(&self) -> Result<()> {
        self.signal("-STOP")
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn thaw(&self) -> Result<()> {
        self.signal("-CONT")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let child = self.child.as_ref().context("it does not run")?;
        crate::run(Command::new("kill").args([signal, &child.id().to_string()])).map(drop)
    }
}

impl Drop for ClickHouse {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
