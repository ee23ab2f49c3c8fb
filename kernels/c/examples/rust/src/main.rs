//! Classifies sequences of token ids: efft-example FOLDER 101,2129,102 ...
//! Prints a line per row of logits. The declarations are those of efft/efft.h that it needs.
use std::ffi::{c_char, CStr, CString};
use std::ptr::{null, null_mut};

#[repr(C)]
struct Model {
    _private: [u8; 0],
}
#[repr(C)]
struct RawSession {
    _private: [u8; 0],
}
const LOGITS: i32 = 3;

extern "C" {
    fn efft_last_error() -> *const c_char;
    fn efft_model_open(folder: *const c_char, model: *mut *mut Model) -> i32;
    fn efft_model_free(model: *mut Model);
    fn efft_session_create(model: *mut Model, threads: i32, session: *mut *mut RawSession) -> i32;
    fn efft_session_free(session: *mut RawSession);
    fn efft_output_shape(
        model: *const Model, output: i32, sequences: i64, tokens: i64, rows: *mut i64, columns: *mut i64,
    ) -> i32;
    fn efft_encode(
        session: *mut RawSession, ids: *const i64, segments: *const i64, cu_seqlens: *const i32, sequences: i64,
        output: i32, out: *mut f32, out_elements: usize,
    ) -> i32;
}

fn check(status: i32) -> Result<(), String> {
    if status == 0 {
        return Ok(());
    }
    Err(unsafe { CStr::from_ptr(efft_last_error()) }.to_string_lossy().into_owned())
}

/// A model and a session on it.
struct Encoder {
    model: *mut Model,
    session: *mut RawSession,
}

// A session may move from thread to thread; `&mut self` keeps it in one call at a time.
unsafe impl Send for Encoder {}

impl Encoder {
    fn open(folder: &str) -> Result<Self, String> {
        let path = CString::new(folder).map_err(|error| error.to_string())?;
        let mut encoder = Encoder { model: null_mut(), session: null_mut() };
        check(unsafe { efft_model_open(path.as_ptr(), &mut encoder.model) })?;
        check(unsafe { efft_session_create(encoder.model, 0, &mut encoder.session) })?;
        Ok(encoder)
    }

    /// The logits, row-major, and their number of columns.
    fn logits(&mut self, sequences: &[Vec<i64>]) -> Result<(Vec<f32>, usize), String> {
        let ids = sequences.concat();
        let mut starts = vec![0i32];
        for sequence in sequences {
            starts.push(starts[starts.len() - 1] + sequence.len() as i32);
        }
        let count = sequences.len() as i64;
        let (mut rows, mut columns) = (0i64, 0i64);
        unsafe {
            check(efft_output_shape(self.model, LOGITS, count, ids.len() as i64, &mut rows, &mut columns))?;
            let mut out = vec![0f32; (rows * columns) as usize];
            let (data, room) = (out.as_mut_ptr(), out.len());
            check(efft_encode(self.session, ids.as_ptr(), null(), starts.as_ptr(), count, LOGITS, data, room))?;
            Ok((out, columns as usize))
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        unsafe {
            efft_session_free(self.session);
            efft_model_free(self.model);
        }
    }
}

fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: efft-example FOLDER IDS...")?;
    let sequences = arguments
        .map(|text| text.split(',').map(|id| id.parse().map_err(|_| format!("{id:?} is no id"))).collect())
        .collect::<Result<Vec<Vec<i64>>, String>>()?;
    let (logits, columns) = Encoder::open(&folder)?.logits(&sequences)?;
    for row in logits.chunks(columns.max(1)) {
        println!("{}", row.iter().map(|value| value.to_string()).collect::<Vec<_>>().join(" "));
    }
    Ok(())
}

fn main() {
    if let Err(error) = run() {
        eprintln!("efft-example: {error}");
        std::process::exit(1);
    }
}
