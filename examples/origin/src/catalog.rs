//! A catalog of products, in the form that public APIs for trying things out have.

use serde::Serialize;

/// Number of products, whose ids begin with 1.
const PRODUCTS: u32 = 100;

/// A product.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Product {
    id: u32,
    title: String,
    price: f64,
    category: &'static str,
    description: String,
    rating: Rating,
}

#[derive(Debug, PartialEq, Serialize)]
struct Rating {
    rate: f64,
    count: u32,
}

/// The product of that id: always the same one, or none.
pub(crate) fn product(id: u32) -> Option<Product> {
    if !(1..=PRODUCTS).contains(&id) {
        return None;
    }
    let pick = |from: &[&'static str], salt: u32| from[(id * salt % 31) as usize % from.len()];
    let material = pick(&["cotton", "oak", "steel", "wool", "glass"], 7);
    let thing = pick(&["backpack", "lamp", "kettle", "chair", "towel", "clock"], 11);
    Some(Product {
        id,
        title: format!("A {material} {thing}"),
        price: f64::from(id * 379 % 20_000 + 495) / 100.0,
        category: pick(&["home", "travel", "kitchen"], 3),
        description: format!("Number {id} of {PRODUCTS}: a {thing}, made of {material} by hand."),
        rating: Rating { rate: f64::from(id * 13 % 21 + 30) / 10.0, count: id * 37 % 500 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_always_the_same_one() {
        assert_eq!(product(7), product(7));
        assert_ne!(product(7), product(8));
        assert_eq!(serde_json::to_value(product(100)).unwrap()["id"], 100);
        assert_eq!((product(0), product(101)), (None, None));
    }
}
