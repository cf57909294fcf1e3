//! Input to tensor: scaling and windows of sensor rows, resize and normalise of pictures. Pure functions, no IO.
//!
//! Callers: the pipelines of `inference` and the self-test of `model`, so that both see the same numbers.

use std::collections::VecDeque;

#[cfg(any(feature = "tract", feature = "rten"))]
pub use crate::decode::decode_picture;
use crate::manifest::{ChannelOrder, ImageLayout, ImageSpec, Resize, SeriesLayout, SeriesSpec};

/// Widest and highest picture that is decoded, in pixels.
pub const PICTURE_SIDE_MAX: u32 = 8_192;
/// Most memory that a decoder may take, in bytes.
pub const PICTURE_DECODE_BYTES_MAX: u64 = 256 << 20;

/// Why a picture is refused.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a JPEG, PNG or BMP, or broken.
    #[error("the picture cannot be decoded: {detail}")]
    Decode {
        /// The decoder's text.
        detail: String,
    },
    /// Over the bounds of a picture file.
    #[error(
        "expected a picture of at most {side_max} x {side_max} pixels that takes at most {decode_bytes_max} bytes: {detail}"
    )]
    TooLarge {
        /// Pixels a side.
        side_max: u32,
        /// Bytes that its pixels may take.
        decode_bytes_max: u64,
        /// The decoder's text.
        detail: String,
    },
    /// A side of the given pixels is out of bounds.
    #[error("expected sides of 1 to {PICTURE_SIDE_MAX} pixels, found {width} x {height}")]
    Side {
        /// Given width.
        width: usize,
        /// Given height.
        height: usize,
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

/// Without an engine nobody looks at a picture, and its decoders are left out.
#[cfg(not(any(feature = "tract", feature = "rten")))]
pub(crate) fn decode_picture(_bytes: &[u8]) -> Result<Picture, ImageError> {
    Err(ImageError::Decode { detail: "this program was built without an inference engine".into() })
}

/// A decoded picture: u8 `[height, width, 3]`, RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    pub(crate) rgb: Vec<u8>,
}

impl Picture {
    /// Takes pixels: u8 `[height, width, 3]`, RGB.
    ///
    /// # Errors
    /// When the length is not width x height x 3, or a side is 0 or over [`PICTURE_SIDE_MAX`].
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self, ImageError> {
        let side = 1..=PICTURE_SIDE_MAX as usize;
        if !side.contains(&width) || !side.contains(&height) {
            return Err(ImageError::Side { width, height });
        }
        let expected = width * height * 3;
        if rgb.len() != expected {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn series(layout: SeriesLayout) -> SeriesSpec {
        SeriesSpec {
            columns: vec!["a".into(), "b".into()],
            units: vec!["m".into(), "s".into()],
            rate_hz: 1.0,
            window_rows: 2,
            stride_rows: 1,
            layout,
            mean: vec![1.0, 10.0],
            std: vec![2.0, 5.0],
        }
    }

    #[test]
    fn series_are_scaled_per_column_and_laid_out() {
        let rows: [&[f64]; 2] = [&[1.0, 10.0], &[3.0, 15.0]];
        assert_eq!(series_tensor(rows.into_iter(), &series(SeriesLayout::Rows)), [0.0, 0.0, 1.0, 1.0]);
        let rows: [&[f64]; 2] = [&[1.0, 15.0], &[3.0, 20.0]];
        assert_eq!(series_tensor(rows.into_iter(), &series(SeriesLayout::Columns)), [0.0, 1.0, 1.0, 2.0]);
    }

    /// Last value of each ready window.
    fn ready(window: &mut Window, values: std::ops::Range<i32>) -> Vec<i32> {
        values.filter(|value| window.push(&[f64::from(*value)])).collect()
    }

    #[test]
    fn windows_are_ready_every_stride_once_full() {
        assert_eq!(ready(&mut Window::new(3, 2), 0..9), [2, 4, 6, 8]);
        assert_eq!(ready(&mut Window::new(2, 5), 0..12), [1, 6, 11]);
        assert_eq!(ready(&mut Window::new(1, 1), 0..3), [0, 1, 2]);
    }

    #[test]
    fn cleared_window_waits_until_it_is_full_again() {
        let mut window = Window::new(3, 1);
        assert_eq!(ready(&mut window, 0..4), [2, 3]);
        window.clear();
        assert_eq!(ready(&mut window, 4..8), [6, 7]);
    }

    proptest! {
        #[test]
        fn window_holds_the_newest_rows_oldest_first(size in 1usize..9, stride in 1usize..9, count in 0usize..60) {
            let mut window = Window::new(size, stride);
            for index in 0..count {
                let is_ready = window.push(&[index as f64]);
                let expected = index + 1 >= size && (index + 1 - size) % stride == 0;
                prop_assert_eq!(is_ready, expected);
                let held: Vec<f64> = window.rows().map(|row| row[0]).collect();
                let first = (index + 1).saturating_sub(size);
                prop_assert_eq!(held, (first..=index).map(|i| i as f64).collect::<Vec<_>>());
            }
        }

        #[test]
        fn resize_stays_within_the_pixels(width in 1usize..20, height in 1usize..20, to in 1usize..20, seed: u8) {
            let rgb: Vec<u8> = (0..width * height * 3).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let (low, high) = (*rgb.iter().min().unwrap(), *rgb.iter().max().unwrap());
            let picture = Picture::from_rgb(width, height, rgb).unwrap();
            let tensor = picture_tensor(&picture, &image(to, to, ChannelOrder::Rgb, ImageLayout::Nhwc)).unwrap();
            prop_assert!(tensor.iter().all(|z| *z >= f32::from(low) - 1e-3 && *z <= f32::from(high) + 1e-3));
        }
    }

    fn image(width: usize, height: usize, channels: ChannelOrder, layout: ImageLayout) -> ImageSpec {
        let count = channels.count();
        let (mean, std) = (vec![0.0; count], vec![1.0; count]);
        ImageSpec { width, height, channels, layout, resize: Resize::Bilinear, scale: 1.0, mean, std }
    }

    /// One row of two pixels: (10, 20, 30) and (40, 50, 60).
    fn two_pixels() -> Picture {
        Picture::from_rgb(2, 1, vec![10, 20, 30, 40, 50, 60]).unwrap()
    }

    #[test]
    fn channels_and_layouts() {
        let tensor =
            |channels, layout| picture_tensor(&two_pixels(), &image(2, 1, channels, layout)).unwrap();
        assert_eq!(tensor(ChannelOrder::Rgb, ImageLayout::Nhwc), [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(tensor(ChannelOrder::Bgr, ImageLayout::Nhwc), [30.0, 20.0, 10.0, 60.0, 50.0, 40.0]);
        assert_eq!(tensor(ChannelOrder::Rgb, ImageLayout::Nchw), [10.0, 40.0, 20.0, 50.0, 30.0, 60.0]);
        let gray = tensor(ChannelOrder::Gray, ImageLayout::Nchw);
        assert!((gray[0] - 18.15).abs() < 1e-4 && (gray[1] - 48.15).abs() < 1e-4, "{gray:?}");
    }

    #[test]
    fn normalisation_follows_the_channel_order() {
        let mut spec = image(2, 1, ChannelOrder::Bgr, ImageLayout::Nchw);
        (spec.scale, spec.mean, spec.std) = (0.1, vec![3.0, 2.0, 1.0], vec![1.0, 1.0, 0.5]);
        let tensor = picture_tensor(&two_pixels(), &spec).unwrap();
        let expected = [0.0, 3.0, 0.0, 3.0, 0.0, 6.0];
        assert!(tensor.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{tensor:?}");
    }

    #[test]
    fn bilinear_has_half_pixel_centres_and_clamped_edges() {
        let picture = Picture::from_rgb(2, 1, vec![0, 0, 0, 100, 100, 100]).unwrap();
        let wide = picture_tensor(&picture, &image(4, 1, ChannelOrder::Gray, ImageLayout::Nchw)).unwrap();
        let expected = [0.0, 25.0, 75.0, 100.0];
        assert!(wide.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3), "{wide:?}");
        let narrow = picture_tensor(&picture, &image(1, 1, ChannelOrder::Gray, ImageLayout::Nchw)).unwrap();
        assert!((narrow[0] - 50.0).abs() < 1e-3);
    }

    #[test]
    fn exact_size_refuses_another_and_wrong_lengths_are_refused() {
        let mut spec = image(3, 3, ChannelOrder::Gray, ImageLayout::Nchw);
        spec.resize = Resize::Exact;
        let error = picture_tensor(&two_pixels(), &spec).unwrap_err().to_string();
        assert_eq!(error, "expected a picture of 3 x 3 pixels, found 2 x 1");
        assert!(Picture::from_rgb(2, 2, vec![0; 11]).is_err());
        assert!(Picture::from_rgb(0, 2, vec![]).is_err());
    }
}
