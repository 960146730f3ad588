//! Enums whose variants have labels.

/// Declares an enum, its list `ALL` and its labels `as_str` from one list, so that none of them can miss a variant.
///
/// ```
/// larder_api::labelled! {
///     /// Direction of a transfer.
///     #[derive(Clone, Copy, Debug, PartialEq)]
///     pub enum Direction {
///         /// To the client.
///         Down = "down",
///         /// To the origin.
///         Up = "up",
///     }
/// }
/// assert_eq!(Direction::ALL.map(Direction::as_str), ["down", "up"]);
/// ```
#[macro_export]
macro_rules! labelled {
    (
        $(#[$attribute:meta])*
        $visibility:vis enum $name:ident {
            $($(#[$of_variant:meta])* $variant:ident = $label:expr),+ $(,)?
        }
    ) => {
        $(#[$attribute])*
        $visibility enum $name {
            $($(#[$of_variant])* $variant),+
        }

        impl $name {
            /// All variants, in the order of the declaration.
            #[allow(dead_code)]
            $visibility const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// Returns the label.
            #[allow(dead_code)]
            $visibility const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label),+
                }
            }
        }
    };
}
