//! Policies for kinds of applications: the files of `examples/policies`.

larder_api::labelled! {
    /// Kind of application.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
    pub(crate) enum Template {
        /// A REST API: items, lists, and writes that make both new.
        Rest = "rest",
        /// GraphQL: persisted queries over GET, queries over POST, mutations.
        #[value(name = "graphql")]
        GraphQl = "graphql",
        /// WordPress and WooCommerce: pages for visitors, none for people who logged in or have a cart.
        #[value(name = "wordpress")]
        WordPress = "wordpress",
        /// Next.js: static files, images, regenerated pages.
        #[value(name = "nextjs")]
        NextJs = "nextjs",
        /// A site of files that stays up while its server does not.
        Static = "static",
        /// gRPC-Gateway: resources as JSON.
        GrpcGateway = "grpc-gateway",
    }
}

impl Template {
    /// Returns the policy.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Rest => include_str!("../../../examples/policies/rest.yaml"),
            Self::GraphQl => include_str!("../../../examples/policies/graphql.yaml"),
            Self::WordPress => include_str!("../../../examples/policies/wordpress.yaml"),
            Self::NextJs => include_str!("../../../examples/policies/nextjs.yaml"),
            Self::Static => include_str!("../../../examples/policies/static.yaml"),
            Self::GrpcGateway => include_str!("../../../examples/policies/grpc-gateway.yaml"),
        }
    }
}
