//! Picture files to pixels: JPEG, PNG and BMP, within bounds.

use std::io::Cursor;

use image::{ImageReader, Limits};

use crate::preprocess::{ImageError, PICTURE_DECODE_BYTES_MAX, PICTURE_SIDE_MAX, Picture};

/// Decodes the bytes of a JPEG, PNG or BMP file within bounds.
///
/// # Errors
/// When the format is another, the file is broken, or the picture is over the bounds.
pub fn decode_picture(bytes: &[u8]) -> Result<Picture, ImageError> {
    decode_within(bytes, PICTURE_SIDE_MAX, PICTURE_DECODE_BYTES_MAX)
}

fn decode_within(bytes: &[u8], side_max: u32, decode_bytes_max: u64) -> Result<Picture, ImageError> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|error| ImageError::Decode { detail: error.to_string() })?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(side_max);
    limits.max_image_height = Some(side_max);
    limits.max_alloc = Some(decode_bytes_max);
    reader.limits(limits);
    let refused = |error: image::ImageError| match error {
        image::ImageError::Limits(error) => {
            ImageError::TooLarge { side_max, decode_bytes_max, detail: error.to_string() }
        }
        error => ImageError::Decode { detail: error.to_string() },
    };
    let rgb = reader.decode().map_err(refused)?.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Picture::from_rgb(width, height, rgb.into_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_pictures_are_errors() {
        for bytes in [&b""[..], b"GIF89a", b"\x89PNG\r\n\x1a\n garbage", b"\xff\xd8\xff\xe0 no jpeg", b"BM"] {
            assert!(decode_picture(bytes).is_err());
        }
    }

    fn encoded(width: u32, height: u32, format: image::ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image::RgbImage::new(width, height).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    const FORMATS: [image::ImageFormat; 3] =
        [image::ImageFormat::Png, image::ImageFormat::Jpeg, image::ImageFormat::Bmp];

    #[test]
    fn a_picture_with_a_side_over_the_bound_is_refused() {
        let (max, over) = (PICTURE_SIDE_MAX, PICTURE_SIDE_MAX + 1);
        for format in FORMATS {
            for (width, height) in [(max, 1), (1, max)] {
                assert!(decode_picture(&encoded(width, height, format)).is_ok(), "{format:?}");
            }
            for (width, height) in [(over, 1), (1, over)] {
                let error = decode_picture(&encoded(width, height, format)).unwrap_err();
                assert!(matches!(error, ImageError::TooLarge { .. }), "{format:?}: {error}");
                assert!(error.to_string().contains("at most 8192 x 8192 pixels"), "{error}");
            }
        }
        let raw = |width: usize, height: usize| Picture::from_rgb(width, height, vec![0; width * height * 3]);
        assert!(raw(max as usize, 1).is_ok() && raw(1, max as usize).is_ok());
        for (width, height) in [(over as usize, 1), (1, over as usize), (0, 1), (1, 0)] {
            let error = raw(width, height).unwrap_err().to_string();
            assert_eq!(error, format!("expected sides of 1 to 8192 pixels, found {width} x {height}"));
        }
    }

    #[test]
    fn a_picture_that_decodes_into_more_bytes_than_the_bound_is_refused() {
        // A picture header of a few bytes can promise any size: the bound is a small one here.
        let decoded = 16 * 16 * 3;
        for format in FORMATS {
            let bytes = encoded(16, 16, format);
            let error = decode_within(&bytes, 16, decoded - 1).unwrap_err();
            assert!(matches!(error, ImageError::TooLarge { .. }), "{format:?}: {error}");
            assert!(error.to_string().contains("takes at most 767 bytes"), "{error}");
        }
        for format in [image::ImageFormat::Jpeg, image::ImageFormat::Bmp] {
            assert!(decode_within(&encoded(16, 16, format), 16, decoded).is_ok(), "{format:?}");
        }
    }

    #[test]
    fn every_format_decodes_to_the_same_pixels() {
        let pixels = image::RgbImage::from_fn(16, 16, |x, y| {
            image::Rgb([(x / 8 * 200) as u8, (y / 8 * 200) as u8, 90])
        });
        let encode = |format| {
            let mut bytes = Cursor::new(Vec::new());
            pixels.write_to(&mut bytes, format).unwrap();
            decode_picture(&bytes.into_inner()).unwrap()
        };
        let png = encode(image::ImageFormat::Png);
        assert_eq!(png.rgb, pixels.as_raw().as_slice());
        assert_eq!(encode(image::ImageFormat::Bmp), png);
        let jpeg = encode(image::ImageFormat::Jpeg);
        let worst = jpeg.rgb.iter().zip(&png.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!((jpeg.width(), jpeg.height()) == (16, 16) && worst < 40, "{worst}");
    }
}
