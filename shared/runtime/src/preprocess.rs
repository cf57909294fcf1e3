//! Input to tensor: scaling and windows of sensor rows, resize and normalise of pictures. Pure functions, no IO.
//!
//! Callers: the pipelines of `inference` and the self-test of `model`, so that both see the same numbers.

use std::collections::VecDeque;
use std::io::Cursor;

use image::{ImageReader, Limits};

use crate::manifest::{ChannelOrder, ImageLayout, ImageSpec, Resize, SeriesLayout, SeriesSpec};

/// Widest and highest picture that is decoded, in pixels.
pub const PICTURE_SIDE_MAX: u32 = 8_192;
/// Most memory that a decoder may take, in bytes.
pub const PICTURE_DECODE_BYTES_MAX: u64 = 256 << 20;

/// Why a picture is refused.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a JPEG, PNG or BMP, broken, or over the bounds.
    #[error("the picture cannot be decoded: {detail}")]
    Decode {
        /// The decoder's text.
        detail: String,
    },
    /// The pixels do not fill the given size.
    #[error("expected {expected} bytes of RGB for {width} x {height} pixels, found {found}")]
    Size {
        /// Given width.
        width: usize,
        /// Given height.
        height: usize,
        /// width x height x 3.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// The model wants exactly its own size.
    #[error("expected a picture of {expected_width} x {expected_height} pixels, found {width} x {height}")]
    NotExact {
        /// The model's width.
        expected_width: usize,
        /// The model's height.
        expected_height: usize,
        /// The picture's width.
        width: usize,
        /// The picture's height.
        height: usize,
    },
}

/// A decoded picture: u8 `[height, width, 3]`, RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    /// Takes pixels: u8 `[height, width, 3]`, RGB.
    ///
    /// # Errors
    /// When the length is not width x height x 3, or a side is 0 or over [`PICTURE_SIDE_MAX`].
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self, ImageError> {
        let side = 1..=PICTURE_SIDE_MAX as usize;
        let expected = width.saturating_mul(height).saturating_mul(3);
        if rgb.len() != expected || !side.contains(&width) || !side.contains(&height) {
            return Err(ImageError::Size { width, height, expected, found: rgb.len() });
        }
        Ok(Self { width, height, rgb })
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }
}

/// Decodes the bytes of a JPEG, PNG or BMP file within bounds.
///
/// # Errors
/// When the format is another, the file is broken, or the picture is over the bounds.
pub fn decode_picture(bytes: &[u8]) -> Result<Picture, ImageError> {
    let decode_error = |detail: String| ImageError::Decode { detail };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| decode_error(error.to_string()))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(PICTURE_SIDE_MAX);
    limits.max_image_height = Some(PICTURE_SIDE_MAX);
    limits.max_alloc = Some(PICTURE_DECODE_BYTES_MAX);
    reader.limits(limits);
    let rgb = reader.decode().map_err(|error| decode_error(error.to_string()))?.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Picture::from_rgb(width, height, rgb.into_raw())
}

/// Resizes, orders channels and normalises: `z = (pixel * scale - mean) / std` per channel, pixels in 0..=255.
/// Returns f32 `[height, width, channels]` or `[channels, height, width]` by the layout.
///
/// # Errors
/// When the spec wants exactly its own size and the picture has another.
pub fn picture_tensor(picture: &Picture, spec: &ImageSpec) -> Result<Vec<f32>, ImageError> {
    let same_size = picture.width == spec.width && picture.height == spec.height;
    if !same_size && spec.resize == Resize::Exact {
        let (expected_width, expected_height) = (spec.width, spec.height);
        return Err(ImageError::NotExact {
            expected_width,
            expected_height,
            width: picture.width,
            height: picture.height,
        });
    }
    let channels = spec.channels.count();
    let plane = spec.width * spec.height;
    let columns = axis_taps(picture.width, spec.width);
    let rows = axis_taps(picture.height, spec.height);
    let mut tensor = vec![0.0f32; plane * channels];
    for (y, row) in rows.iter().enumerate() {
        for (x, column) in columns.iter().enumerate() {
            let rgb = sample(picture, row, column);
            for (channel, value) in ordered(rgb, spec.channels).into_iter().take(channels).enumerate() {
                let z = (value * spec.scale - spec.mean[channel]) / spec.std[channel];
                let pixel = y * spec.width + x;
                let index = match spec.layout {
                    ImageLayout::Nhwc => pixel * channels + channel,
                    ImageLayout::Nchw => channel * plane + pixel,
                };
                tensor[index] = z;
            }
        }
    }
    Ok(tensor)
}

fn ordered([red, green, blue]: [f32; 3], order: ChannelOrder) -> [f32; 3] {
    match order {
        ChannelOrder::Rgb => [red, green, blue],
        ChannelOrder::Bgr => [blue, green, red],
        ChannelOrder::Gray => [0.299 * red + 0.587 * green + 0.114 * blue, 0.0, 0.0],
    }
}

/// The two source positions of a target position and the weight of the second.
struct Taps {
    first: usize,
    second: usize,
    weight: f32,
}

/// Bilinear taps with half-pixel centres and clamped edges.
fn axis_taps(from: usize, to: usize) -> Vec<Taps> {
    let ratio = from as f64 / to as f64;
    let last = from - 1;
    (0..to)
        .map(|target| {
            let centre = ((target as f64 + 0.5) * ratio - 0.5).clamp(0.0, last as f64);
            let first = centre.floor() as usize;
            Taps { first, second: (first + 1).min(last), weight: (centre - centre.floor()) as f32 }
        })
        .collect()
}

fn sample(picture: &Picture, row: &Taps, column: &Taps) -> [f32; 3] {
    let at =
        |y: usize, x: usize, channel: usize| f32::from(picture.rgb[(y * picture.width + x) * 3 + channel]);
    std::array::from_fn(|channel| {
        let mix = |y: usize| {
            let (left, right) = (at(y, column.first, channel), at(y, column.second, channel));
            left + (right - left) * column.weight
        };
        let (top, bottom) = (mix(row.first), mix(row.second));
        top + (bottom - top) * row.weight
    })
}

/// Scales one window of rows: `z = (x - mean) / std` per column.
/// Returns f32 `[rows, columns]` or `[columns, rows]` by the layout. Rows have as many values as the spec has columns.
pub fn series_tensor<'a>(rows: impl ExactSizeIterator<Item = &'a [f64]>, spec: &SeriesSpec) -> Vec<f32> {
    let columns = spec.columns.len();
    let count = rows.len();
    let mut tensor = vec![0.0f32; count * columns];
    for (row_index, row) in rows.enumerate() {
        for (column, value) in row.iter().take(columns).enumerate() {
            let z = (value - spec.mean[column]) / spec.std[column];
            let index = match spec.layout {
                SeriesLayout::Rows => row_index * columns + column,
                SeriesLayout::Columns => column * count + row_index,
            };
            tensor[index] = z as f32;
        }
    }
    tensor
}

/// A sliding window over rows: holds at most `rows` rows and is ready every `stride` rows once full.
#[derive(Clone, Debug)]
pub struct Window {
    rows: VecDeque<Vec<f64>>,
    size: usize,
    stride: usize,
    /// Rows still missing until the next window is ready.
    missing: usize,
}

impl Window {
    /// An empty window; both numbers are at least 1.
    #[must_use]
    pub fn new(size: usize, stride: usize) -> Self {
        Self { rows: VecDeque::with_capacity(size), size, stride, missing: size }
    }

    /// Adds a row; true when a window is ready to be read by [`Window::rows`].
    pub fn push(&mut self, row: &[f64]) -> bool {
        // The oldest row's memory is reused for the newest.
        let mut slot =
            if self.rows.len() == self.size { self.rows.pop_front().unwrap_or_default() } else { Vec::new() };
        slot.clear();
        slot.extend_from_slice(row);
        self.rows.push_back(slot);
        self.missing -= 1;
        if self.missing > 0 {
            return false;
        }
        self.missing = self.stride;
        true
    }

    /// The rows, oldest first.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.rows.iter().map(Vec::as_slice)
    }

    /// Forgets all rows, after a gap in the series.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.missing = self.size;
    }
}
