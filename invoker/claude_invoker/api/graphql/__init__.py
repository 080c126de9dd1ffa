"""`/graphql`: runs, jobs and limits for clients of GraphQL."""
