"""A person's login at the issuer, kept on his machine: RFC 8628, 8414, 6749 section 6, 7009."""
