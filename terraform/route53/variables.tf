variable "zone" {
  description = "Name of the public hosted zone, which must exist: `example.com`."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]([a-z0-9-]*[a-z0-9])?$", var.zone))
    error_message = "Write the zone in lower case and without a dot at its end, like `example.com`."
  }
}

variable "record" {
  description = "Name of the service in the zone: `shop.example.com`. Nothing else may hold records of this name and type."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]([a-z0-9-]*[a-z0-9])?$", var.record))
    error_message = "Write the record in lower case and without a dot at its end, like `shop.example.com`. It must lie in the zone."
  }
}

variable "record_type" {
  description = "Type of the weighted records. A service with IPv4 and IPv6 addresses is two traffic targets: use the module twice."
  type        = string
  default     = "A"

  validation {
    condition     = contains(["A", "AAAA", "CNAME"], var.record_type)
    error_message = "The controller handles `A`, `AAAA` and `CNAME`. It refuses alias records."
  }
}

variable "ttl_seconds" {
  description = "How long resolvers may keep an answer, in seconds. Less than the policy's `steps.verify`. The controller writes the same value with each move."
  type        = number
  default     = 60

  validation {
    condition     = var.ttl_seconds >= 1 && var.ttl_seconds <= 86400 && floor(var.ttl_seconds) == var.ttl_seconds
    error_message = "Between 1 and 86400, in whole seconds; 60 is usual for a record that must move."
  }
}

variable "sites" {
  description = "For each site its one address or name: `{ aws = \"198.51.100.20\", gcp = \"203.0.113.20\" }`. The keys are the names of `[sites]` in failover.toml."
  type        = map(string)

  validation {
    condition     = length(var.sites) == 2 && length(distinct(values(var.sites))) == 2
    error_message = "A group has exactly two sites, each with a value of its own."
  }

  validation {
    condition     = alltrue([for site in keys(var.sites) : can(regex("^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", site))])
    error_message = "A site's name has lower-case letters, digits and hyphens, begins with a letter, does not end with a hyphen, and has at most 40 characters."
  }
}

variable "first_active" {
  description = "The site that gets all users when the records are created. Not looked at later: the controller moves the weights."
  type        = string
}

variable "identifier_prefix" {
  description = "What comes before the site's name in the set identifiers: `shop-` gives `shop-aws`."
  type        = string
  default     = "failover-"

  validation {
    condition     = length(var.identifier_prefix) <= 80
    error_message = "At most 80 characters: a set identifier has at most 128, the site's name included."
  }
}

variable "target_name" {
  description = "Name of this traffic target in failover.toml, and of the IAM policy after `failover-`."
  type        = string
  default     = "route53"

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", var.target_name))
    error_message = "Lower-case letters, digits and hyphens, beginning with a letter, not ending with a hyphen, at most 40 characters."
  }
}
